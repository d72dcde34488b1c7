package admin

import (
	"net/http"
	"slices"
	"strings"

	"github.com/sds-server/sds-server/pkg/sds"
)

// Explanation is the answer of `explain`.
type Explanation = sds.Explanation

func (s *Server) explain(r *http.Request) (any, error) {
	identity, name := r.FormValue("identity"), r.FormValue("secret")
	if identity == "" || name == "" {
		return nil, fail(http.StatusBadRequest, "identity and secret are needed", "")
	}
	return s.SDS.Explain(s.Live().peer(identity), name), nil
}

// peer is somebody with an identity, as the listeners that he can come in by see him.
func (l Live) peer(identity string) sds.Peer {
	p := sds.Peer{Transport: sds.TLS, Identities: []string{identity}}
	switch {
	case strings.HasPrefix(identity, "unix:"):
		p.Transport = sds.Unix
	case identity == string(sds.Plaintext):
		p.Transport = sds.Plaintext
	}
	for _, listener := range l.SDS {
		if listener.transport() != p.Transport {
			continue
		}
		if len(listener.Groups) == 0 { // this one lets him into every group of his
			p.Groups = nil
			return p
		}
		p.Groups = append(p.Groups, listener.Groups...)
	}
	slices.Sort(p.Groups)
	p.Groups = slices.Compact(p.Groups)
	return p
}

func (l SDSListener) transport() sds.Transport {
	switch {
	case l.Unix:
		return sds.Unix
	case l.Plain:
		return sds.Plaintext
	}
	return sds.TLS
}
