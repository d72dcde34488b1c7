package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"

	"golang.org/x/crypto/cryptobyte"
)

// rsaClient is a TLS 1.2 client (RFC 5246, RFC 8422) that knows RSA certificates only. Package crypto/tls cannot be one: whatever its cipher
// suites are, its ClientHello has supported_versions and signature algorithms of ECDSA, and from a listener with both kinds of certificates an
// Envoy gives it the one of ECDSA. This one is what it is for: no extension of TLS 1.3, nothing of ECDSA, no way to resume a session. It carries
// no data.
type rsaClient struct {
	records
	name string // SNI; empty: none
	seen *seen

	transcript   []byte // every handshake message
	pending      []byte // received, not read yet
	clientRandom []byte
	serverRandom []byte
	suite        suite
	key          *ecdh.PrivateKey
	peer         *ecdh.PublicKey
}

// Handshake messages (RFC 5246, Section 7.4).
const (
	messageHelloRequest       = 0
	messageClientHello        = 1
	messageServerHello        = 2
	messageCertificate        = 11
	messageServerKeyExchange  = 12
	messageCertificateRequest = 13
	messageServerHelloDone    = 14
	messageClientKeyExchange  = 16
	messageFinished           = 20
)

const (
	maxMessage         = 256 << 10 // a chain is far smaller
	verifyDataLength   = 12
	renegotiationSCSV  = 0x00ff // RFC 5746, Section 3.3
	extensionSNI       = 0
	extensionGroups    = 10
	extensionPoints    = 11
	extensionSignature = 13
)

// rsaSchemes are the signatures that an RSA-only client of TLS 1.2 takes, with their hashes.
var rsaSchemes = map[tls.SignatureScheme]crypto.Hash{
	tls.PSSWithSHA256: crypto.SHA256, tls.PSSWithSHA384: crypto.SHA384, tls.PSSWithSHA512: crypto.SHA512,
	tls.PKCS1WithSHA256: crypto.SHA256, tls.PKCS1WithSHA384: crypto.SHA384, tls.PKCS1WithSHA512: crypto.SHA512,
}

var curves = map[tls.CurveID]ecdh.Curve{tls.X25519: ecdh.X25519(), tls.CurveP256: ecdh.P256(), tls.CurveP384: ecdh.P384()}

// handshake runs to the end; what was seen on the way is in c.seen. The connection has a deadline.
func (c *rsaClient) handshake() error {
	if err := c.hello(); err != nil {
		return err
	}
	for _, step := range []func() error{c.serverHello, c.certificate, c.keyExchange, c.helloDone, c.answer} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// hello sends the ClientHello.
func (c *rsaClient) hello() error {
	c.clientRandom = make([]byte, 32)
	rand.Read(c.clientRandom) // never fails
	var b cryptobyte.Builder
	b.AddUint16(tls.VersionTLS12)
	b.AddBytes(c.clientRandom)
	b.AddUint8(0) // no session to resume
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, s := range suites {
			b.AddUint16(s.id)
		}
		b.AddUint16(renegotiationSCSV)
	})
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint8(0) }) // no compression
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		if c.name != "" {
			extension(b, extensionSNI, func(b *cryptobyte.Builder) { // RFC 6066, Section 3
				b.AddUint8(0)
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(c.name)) })
			})
		}
		extension(b, extensionGroups, func(b *cryptobyte.Builder) {
			for _, id := range []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384} {
				b.AddUint16(uint16(id))
			}
		})
		b.AddUint16(extensionPoints)
		b.AddBytes([]byte{0, 2, 1, 0}) // uncompressed
		extension(b, extensionSignature, func(b *cryptobyte.Builder) {
			for _, id := range slices.Sorted(maps.Keys(rsaSchemes)) {
				b.AddUint16(uint16(id))
			}
		})
	})
	return c.send(messageClientHello, &b)
}

// extension adds one that holds a list with a length of two bytes.
func extension(b *cryptobyte.Builder, id uint16, list cryptobyte.BuilderContinuation) {
	b.AddUint16(id)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16LengthPrefixed(list) })
}

func (c *rsaClient) serverHello() error {
	body, err := c.expect(messageServerHello)
	if err != nil {
		return err
	}
	var version, id uint16
	var compression uint8
	var session cryptobyte.String
	if !body.ReadUint16(&version) || !body.ReadBytes(&c.serverRandom, 32) || !body.ReadUint8LengthPrefixed(&session) ||
		!body.ReadUint16(&id) || !body.ReadUint8(&compression) {
		return errMalformed
	}
	i := slices.IndexFunc(suites, func(s suite) bool { return s.id == id })
	if version != tls.VersionTLS12 || compression != 0 || i < 0 {
		return fmt.Errorf("%w: it chose what was not offered (version %#04x, cipher suite %#04x)", errMalformed, version, id)
	}
	c.suite = suites[i]
	return nil
}

func (c *rsaClient) certificate() error {
	body, err := c.expect(messageCertificate)
	if err != nil {
		return err
	}
	var list cryptobyte.String
	if !body.ReadUint24LengthPrefixed(&list) || !body.Empty() {
		return errMalformed
	}
	var raw [][]byte
	for !list.Empty() {
		var one cryptobyte.String
		if !list.ReadUint24LengthPrefixed(&one) {
			return errMalformed
		}
		raw = append(raw, one)
	}
	return c.seen.keep(raw)
}

// keyExchange reads the ServerKeyExchange: its signature proves that the server has the leaf's key.
func (c *rsaClient) keyExchange() error {
	body, err := c.expect(messageServerKeyExchange)
	if err != nil {
		return err
	}
	signed := slices.Concat(c.clientRandom, c.serverRandom, body)
	var kind uint8
	var curve, scheme uint16
	var point, signature cryptobyte.String
	if !body.ReadUint8(&kind) || !body.ReadUint16(&curve) || !body.ReadUint8LengthPrefixed(&point) {
		return errMalformed
	}
	signed = signed[:len(signed)-len(body)] // the parameters without what follows
	if !body.ReadUint16(&scheme) || !body.ReadUint16LengthPrefixed(&signature) || !body.Empty() {
		return errMalformed
	}
	group, ok := curves[tls.CurveID(curve)]
	if kind != 3 || !ok { // named_curve
		return fmt.Errorf("%w: it chose a curve that was not offered (%#04x)", errMalformed, curve)
	}
	if err := checkSignature(c.seen.chain[0].PublicKey, tls.SignatureScheme(scheme), signed, signature); err != nil {
		return err
	}
	c.seen.proven = true
	if c.peer, err = group.NewPublicKey(point); err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	c.key, err = group.GenerateKey(rand.Reader)
	return err
}

func checkSignature(public any, scheme tls.SignatureScheme, signed, signature []byte) error {
	key, ok := public.(*rsa.PublicKey)
	hash, offered := rsaSchemes[scheme]
	if !ok || !offered {
		return fmt.Errorf("%w: a key of type %T with signature %v, which was not offered", errMalformed, public, scheme)
	}
	h := hash.New()
	h.Write(signed) // a hash never returns an error
	var err error
	switch scheme {
	case tls.PSSWithSHA256, tls.PSSWithSHA384, tls.PSSWithSHA512:
		err = rsa.VerifyPSS(key, hash, h.Sum(nil), signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	default:
		err = rsa.VerifyPKCS1v15(key, hash, h.Sum(nil), signature)
	}
	if err != nil {
		return fmt.Errorf("%w: the server does not prove that it has the certificate's key: %w", errMalformed, err)
	}
	return nil
}

// helloDone reads up to the ServerHelloDone; before it, a client certificate may be asked for.
func (c *rsaClient) helloDone() error {
	kind, _, err := c.message()
	if err == nil && kind == messageCertificateRequest {
		c.seen.asked = true
		kind, _, err = c.message()
	}
	if err == nil && kind != messageServerHelloDone {
		err = errMalformed
	}
	return err
}

// answer sends the client's part and reads the end of the server's.
func (c *rsaClient) answer() error {
	if c.seen.asked { // we have none
		var none cryptobyte.Builder
		none.AddUint24(0)
		if err := c.send(messageCertificate, &none); err != nil {
			return err
		}
	}
	var exchange cryptobyte.Builder
	exchange.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(c.key.PublicKey().Bytes()) })
	if err := c.send(messageClientKeyExchange, &exchange); err != nil {
		return err
	}
	shared, err := c.key.ECDH(c.peer)
	if err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	master := c.suite.prf(shared, "master secret", slices.Concat(c.clientRandom, c.serverRandom), 48)
	write, read, err := c.suite.protections(master, c.clientRandom, c.serverRandom)
	if err != nil {
		return err
	}
	if err := c.write(recordChangeCipherSpec, []byte{1}); err != nil {
		return err
	}
	c.writing = write
	var finished cryptobyte.Builder
	finished.AddBytes(c.suite.prf(master, "client finished", c.suite.digest(c.transcript), verifyDataLength))
	if err := c.send(messageFinished, &finished); err != nil {
		return err
	}
	return c.finished(master, read)
}

func (c *rsaClient) finished(master []byte, read *protection) error {
	kind, payload, err := c.read()
	if err != nil {
		return err
	}
	if kind != recordChangeCipherSpec || !bytes.Equal(payload, []byte{1}) || len(c.pending) > 0 {
		return errMalformed
	}
	c.reading = read
	want := c.suite.prf(master, "server finished", c.suite.digest(c.transcript), verifyDataLength)
	got, err := c.expect(messageFinished)
	if err != nil {
		return err
	}
	if !hmac.Equal(got, want) {
		return fmt.Errorf("%w: its last message does not fit the ones before", errMalformed)
	}
	return c.write(recordAlert, []byte{alertWarning, alertCloseNotify})
}

// send writes one handshake message.
func (c *rsaClient) send(kind uint8, body *cryptobyte.Builder) error {
	var b cryptobyte.Builder
	b.AddUint8(kind)
	content, err := body.Bytes()
	if err != nil {
		return err
	}
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(content) })
	message, err := b.Bytes()
	if err != nil {
		return err
	}
	c.transcript = append(c.transcript, message...)
	return c.write(recordHandshake, message)
}

// message reads the next handshake message.
func (c *rsaClient) message() (uint8, cryptobyte.String, error) {
	for {
		if len(c.pending) >= 4 {
			length := int(c.pending[1])<<16 | int(c.pending[2])<<8 | int(c.pending[3])
			if length > maxMessage {
				return 0, nil, fmt.Errorf("%w: a message of %d bytes", errMalformed, length)
			}
			if len(c.pending) >= 4+length {
				message := c.pending[:4+length]
				c.pending = c.pending[4+length:]
				if message[0] == messageHelloRequest { // no part of the handshake (RFC 5246, Section 7.4.1.1)
					continue
				}
				c.transcript = append(c.transcript, message...)
				return message[0], cryptobyte.String(slices.Clone(message[4:])), nil
			}
		}
		kind, payload, err := c.read()
		if err != nil {
			return 0, nil, err
		}
		if kind != recordHandshake || len(payload) == 0 {
			return 0, nil, errMalformed
		}
		c.pending = append(c.pending, payload...)
	}
}

func (c *rsaClient) expect(want uint8) (cryptobyte.String, error) {
	kind, body, err := c.message()
	if err == nil && kind != want {
		err = fmt.Errorf("%w: message %d, want %d", errMalformed, kind, want)
	}
	return body, err
}

// errMalformed is what a server says that is no TLS, or that no server may say.
var errMalformed = errors.New("the answer is not TLS as it should be")

// keep parses what a server sent as its chain.
func (s *seen) keep(raw [][]byte) error {
	if len(raw) == 0 {
		return fmt.Errorf("%w: no certificate", errMalformed)
	}
	chain := make([]*x509.Certificate, 0, len(raw))
	for _, der := range raw {
		one, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("%w: %w", errMalformed, err)
		}
		chain = append(chain, one)
	}
	s.chain = chain
	return nil
}

// remoteAlert is an alert of the server, in the form that crypto/tls returns them in.
func remoteAlert(code uint8) error {
	return &net.OpError{Op: remoteError, Err: tls.AlertError(code)}
}
