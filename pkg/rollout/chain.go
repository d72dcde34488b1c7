package rollout

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// chainChanges reports whether clients see another kind of chain: another root key, number of CA certificates, key or signature
// algorithm, issuer, or profile. Another intermediate under the same root is ordinary: CAs pick them at random.
func chainChanges(from, to *cache.Meta) bool {
	if from == nil || to == nil || from.Kind != secret.KindTLSCertificate || to.Kind != secret.KindTLSCertificate {
		return false
	}
	if from.Issuer != to.Issuer || from.KeyType != to.KeyType || otherProfile(from.Profile, to.Profile) {
		return true
	}
	before, after := parseChain(from.ChainPEM), parseChain(to.ChainPEM)
	if len(before) != len(after) || len(before) == 0 {
		return true
	}
	last := len(before) - 1
	return before[0].SignatureAlgorithm != after[0].SignatureAlgorithm ||
		!bytes.Equal(before[last].AuthorityKeyId, after[last].AuthorityKeyId) ||
		!bytes.Equal(before[last].RawIssuer, after[last].RawIssuer)
}

// otherProfile reports whether two profiles are known, and differ.
func otherProfile(from, to *string) bool { return from != nil && to != nil && *from != *to }

func parseChain(text string) []*x509.Certificate {
	var chain []*x509.Certificate
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil // what is stored was parsed before
		}
		chain = append(chain, c)
	}
	return chain
}
