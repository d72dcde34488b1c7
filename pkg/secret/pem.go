package secret

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"strings"
	"unicode/utf8"
)

// The PEM labels that mean something here (RFC 7468, Section 4).
const (
	labelCertificate  = "CERTIFICATE"
	labelPKCS8        = "PRIVATE KEY"
	labelPKCS1        = "RSA PRIVATE KEY"
	labelSEC1         = "EC PRIVATE KEY"
	labelEncrypted    = "ENCRYPTED PRIVATE KEY"
	labelECParameters = "EC PARAMETERS"
)

const (
	pemBegin = "-----BEGIN "
	pemEnd   = "-----END "
	pemTail  = "-----"
)

// block is one PEM block and where it stands.
type block struct {
	label     string
	der       []byte
	line      int  // of the BEGIN line, from 1
	encrypted bool // has the header of an encrypted key (RFC 1421, Section 4.6.1.1)
}

// scanner splits text into PEM blocks. [pem.Decode] skips what it does not understand; Envoy does not, and rejects the
// secret. So everything that is neither a whole block nor white space is a problem here. Content is never quoted in a
// problem, because a mangled key is still a key.
type scanner struct {
	source   string // "chain" or "key", for the problems
	p        *problems
	comments bool // text outside of blocks is allowed

	blocks  []block
	current *block // the block that is open; nil outside
	bad     bool   // the open block has a problem already
	headers bool   // the open block has header lines
	body    strings.Builder
	text    int  // number of the first line outside of a block that is not white space; 0 if none
	damage  bool // that line is no comment
}

// scanPEM returns the whole blocks of text and adds everything else in it as problems.
func scanPEM(text []byte, source string, p *problems) []block {
	return (&scanner{source: source, p: p}).scan(text)
}

// scanBundle is scanPEM for a bundle of certificates, in which people and programs say what each of them is: openssl -text does, the bundles of
// Linux distributions and of Mozilla do. What is left of a damaged block is still a problem, and so is text that explains no block.
func scanBundle(text []byte, source string, p *problems) []block {
	return (&scanner{source: source, p: p, comments: true}).scan(text)
}

func (s *scanner) scan(text []byte) []block {
	source, p := s.source, s.p
	if looksLikeDER(text) {
		p.add(RuleDER, "%s: binary data, probably DER, instead of PEM", source)
		return nil
	}
	line := 0
	for content := range bytes.Lines(text) {
		line++
		s.scanLine(line, strings.TrimRight(string(content), " \t\r\n"))
	}
	if s.current != nil {
		s.truncated()
	}
	if s.text > 0 && (!s.comments || s.damage || len(s.blocks) == 0) {
		p.add(RulePEMTrailing, "%s: line %d: text outside of a PEM block", source, s.text)
	}
	return s.blocks
}

// scanLine takes one line without its end.
func (s *scanner) scanLine(number int, line string) {
	switch {
	case strings.HasPrefix(line, pemBegin):
		if s.current != nil {
			s.truncated()
		}
		s.open(number, line)
	case s.current == nil:
		if line == "" || s.damage {
			return
		}
		if s.damage = !isComment(line); s.text == 0 || s.damage {
			s.text = number
		}
	case strings.HasPrefix(line, pemEnd):
		s.close(number, line)
	case strings.Contains(line, ":") && s.body.Len() == 0:
		s.headers = true
		s.current.encrypted = s.current.encrypted || strings.HasPrefix(line, "Proc-Type:") && strings.Contains(line, "ENCRYPTED")
	default:
		s.body.WriteString(line)
	}
}

// open begins a block at its BEGIN line.
func (s *scanner) open(number int, line string) {
	s.body.Reset()
	s.headers, s.bad = false, false
	s.current = &block{line: number}
	label, whole := strings.CutSuffix(strings.TrimPrefix(line, pemBegin), pemTail)
	if !whole || !isLabel(label) {
		s.garbage("line %d: a BEGIN line that is not one", number)
		return
	}
	s.current.label = label
}

// close ends the open block at its END line and decodes it.
func (s *scanner) close(number int, line string) {
	b := s.current
	s.current = nil
	if s.bad {
		return
	}
	if label, whole := strings.CutSuffix(strings.TrimPrefix(line, pemEnd), pemTail); !whole || label != b.label {
		s.garbage("line %d: the END line does not match the BEGIN line %d", number, b.line)
		return
	}
	if s.headers && !b.encrypted {
		s.garbage("line %d: the block has header lines", b.line)
		return
	}
	if !b.encrypted {
		der, err := base64.StdEncoding.Strict().DecodeString(s.body.String())
		// The decoder's error names an offset and nothing more than the line already says.
		if err != nil || len(der) == 0 {
			s.garbage("line %d: the block is not base64", b.line)
			return
		}
		b.der = der
	}
	s.blocks = append(s.blocks, *b)
}

// truncated gives up the open block.
func (s *scanner) truncated() {
	if !s.bad {
		s.p.add(RulePEMTruncated, "%s: line %d: the block has no END line", s.source, s.current.line)
	}
	s.current = nil
}

// garbage records a broken block, once for each.
func (s *scanner) garbage(format string, args ...any) {
	s.bad = true
	s.p.add(RulePEMGarbage, "%s: "+format, append([]any{s.source}, args...)...)
}

// looksLikeDER reports whether text is a binary ASN.1 SEQUENCE rather than text that begins with a zero digit.
func looksLikeDER(text []byte) bool {
	const sequence = 0x30
	return len(text) > 0 && text[0] == sequence && (bytes.IndexByte(text, 0) >= 0 || !utf8.Valid(text))
}

// isComment reports whether a line outside of blocks is not what is left of one: neither a BEGIN or END line, nor base64.
func isComment(line string) bool {
	if strings.Contains(line, "--") && (strings.Contains(line, "BEGIN ") || strings.Contains(line, "END ")) {
		return false
	}
	const shortest = 40 // no word is that long; lines of PEM have 64 columns
	body := strings.TrimRight(line, "=")
	return len(body) < shortest || strings.ContainsFunc(body, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '+' && r != '/'
	})
}

// isLabel reports whether a PEM label can be shown to a person: short, upper case.
func isLabel(label string) bool {
	if label == "" || len(label) > 40 {
		return false
	}
	return strings.Trim(label, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 #") == ""
}

// encodePEM is the one way in which this package writes PEM: 64 columns, LF, no headers, nothing between blocks.
func encodePEM(label string, ders ...[]byte) []byte {
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der})...)
	}
	return out
}
