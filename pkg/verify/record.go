package verify

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	_ "crypto/sha256" // the hashes of the cipher suites and signatures
	_ "crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"
)

// Record types (RFC 5246, Section 6.2.1).
const (
	recordChangeCipherSpec = 20
	recordAlert            = 21
	recordHandshake        = 22
)

// Alerts (RFC 5246, Section 7.2).
const (
	alertWarning         = 1
	alertCloseNotify     = 0
	alertProtocolVersion = 70
)

const (
	maxPayload = 16<<10 + 2048 // RFC 5246, Section 6.2.3
	implicitIV = 4             // of AES-GCM (RFC 5288, Section 3)
	explicitIV = 8
)

// suite is a cipher suite with ephemeral keys and RSA certificates.
type suite struct {
	id        uint16
	hash      crypto.Hash
	keyLength int
	ivLength  int
	aead      func(key []byte) (cipher.AEAD, error)
}

// suites are all that Envoy offers for RSA without the obsolete ones.
var suites = []suite{
	{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, crypto.SHA256, 16, implicitIV, gcm},
	{tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, crypto.SHA384, 32, implicitIV, gcm},
	{tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, crypto.SHA256, chacha20poly1305.KeySize, chacha20poly1305.NonceSize, chacha20poly1305.New},
}

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func (s suite) digest(data []byte) []byte {
	h := s.hash.New()
	h.Write(data) // a hash never returns an error
	return h.Sum(nil)
}

// prf is the pseudorandom function of TLS 1.2 (RFC 5246, Section 5).
func (s suite) prf(secret []byte, label string, seed []byte, length int) []byte {
	seed = slices.Concat([]byte(label), seed)
	sum := func(parts ...[]byte) []byte {
		mac := hmac.New(s.hash.New, secret)
		for _, p := range parts {
			mac.Write(p) // as above
		}
		return mac.Sum(nil)
	}
	var out []byte
	for a := sum(seed); len(out) < length; a = sum(a) {
		out = append(out, sum(a, seed)...)
	}
	return out[:length]
}

// protections are those of what the client and what the server writes (RFC 5246, Section 6.3).
func (s suite) protections(master, clientRandom, serverRandom []byte) (client, server *protection, err error) {
	block := s.prf(master, "key expansion", slices.Concat(serverRandom, clientRandom), 2*(s.keyLength+s.ivLength))
	take := func(n int) []byte {
		part := block[:n]
		block = block[n:]
		return part
	}
	client, server = &protection{}, &protection{}
	for _, p := range []*protection{client, server} {
		if p.aead, err = s.aead(take(s.keyLength)); err != nil {
			return nil, nil, err
		}
	}
	client.iv, server.iv = take(s.ivLength), take(s.ivLength)
	return client, server, nil
}

// protection seals or opens the records of one direction.
type protection struct {
	aead     cipher.AEAD
	iv       []byte
	sequence uint64
}

// next returns the nonce and the additional data of the next record; explicit is the part of the nonce that stands before the record, nil for
// suites that have none.
func (p *protection) next(kind uint8, length int, explicit []byte) (nonce, additional []byte) {
	additional = binary.BigEndian.AppendUint64(nil, p.sequence)
	if len(p.iv) == implicitIV {
		nonce = slices.Concat(p.iv, explicit)
	} else { // RFC 7905, Section 2
		nonce = slices.Clone(p.iv)
		for i, b := range additional {
			nonce[len(nonce)-8+i] ^= b
		}
	}
	p.sequence++
	additional = append(additional, kind)
	additional = binary.BigEndian.AppendUint16(additional, tls.VersionTLS12)
	return nonce, binary.BigEndian.AppendUint16(additional, uint16(length))
}

func (p *protection) seal(kind uint8, payload []byte) []byte {
	var explicit []byte
	if len(p.iv) == implicitIV {
		explicit = binary.BigEndian.AppendUint64(nil, p.sequence)
	}
	nonce, additional := p.next(kind, len(payload), explicit)
	return p.aead.Seal(explicit, nonce, payload, additional)
}

func (p *protection) open(kind uint8, sealed []byte) ([]byte, error) {
	var explicit []byte
	if len(p.iv) == implicitIV {
		if len(sealed) < explicitIV {
			return nil, errMalformed
		}
		explicit, sealed = sealed[:explicitIV], sealed[explicitIV:]
	}
	if len(sealed) < p.aead.Overhead() {
		return nil, errMalformed
	}
	nonce, additional := p.next(kind, len(sealed)-p.aead.Overhead(), explicit)
	payload, err := p.aead.Open(nil, nonce, sealed, additional)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	return payload, nil
}

// records is the record layer of a connection.
type records struct {
	conn             net.Conn
	reading, writing *protection // nil: in the clear
}

func (r *records) write(kind uint8, payload []byte) error {
	if r.writing != nil {
		payload = r.writing.seal(kind, payload)
	}
	record := binary.BigEndian.AppendUint16([]byte{kind}, tls.VersionTLS12)
	record = binary.BigEndian.AppendUint16(record, uint16(len(payload)))
	_, err := r.conn.Write(append(record, payload...))
	return err
}

// read returns the next record. An alert is an error, unless it only warns.
func (r *records) read() (kind uint8, payload []byte, err error) {
	for {
		kind, payload, err = r.record()
		switch {
		case err != nil || kind != recordAlert:
			return kind, payload, err
		case len(payload) != 2:
			return 0, nil, errMalformed
		case payload[0] != alertWarning || payload[1] == alertCloseNotify:
			return 0, nil, remoteAlert(payload[1])
		}
	}
}

func (r *records) record() (kind uint8, payload []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r.conn, head[:]); err != nil {
		return 0, nil, err
	}
	kind = head[0]
	length := int(binary.BigEndian.Uint16(head[3:]))
	if kind < recordChangeCipherSpec || kind > recordHandshake || head[1] != 3 || length > maxPayload {
		return 0, nil, fmt.Errorf("%w: it begins with %x", errMalformed, head)
	}
	payload = make([]byte, length)
	if _, err := io.ReadFull(r.conn, payload); err != nil {
		return 0, nil, err
	}
	if r.reading != nil {
		payload, err = r.reading.open(kind, payload)
	}
	return kind, payload, err
}
