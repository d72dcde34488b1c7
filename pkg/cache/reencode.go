package cache

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/sds-server/sds-server/pkg/secret"
)

// mark is a random text that makes the bytes of a version differ from those sent before: white space behind PEM blocks, which every
// PEM reader skips; for other content, of which each byte counts, a setting beside it that Envoy has no use for. Empty: no difference.
type mark string

// newMark returns 64 random bits as spaces and tabs.
func newMark() mark {
	random := make([]byte, 8)
	rand.Read(random) // never fails
	text := make([]byte, 0, 65)
	for _, b := range random {
		for bit := range 8 {
			text = append(text, " \t"[b>>bit&1])
		}
	}
	return mark(append(text, '\n'))
}

// text is PEM as it is sent.
func (m mark) text(pem string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: slices.Concat([]byte(pem), []byte(m))}}
}

// binary is content as it is sent that may not grow by a byte. The directory is watched only where the content is in a file (core.v3.DataSource), but
// it counts in what Envoy compares.
func (m mark) binary(content []byte) *corev3.DataSource {
	out := &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: content}}
	if m != "" {
		digits := strings.NewReplacer(" ", "0", "\t", "1", "\n", "").Replace(string(m))
		out.WatchedDirectory = &corev3.WatchedDirectory{Path: "unused-" + digits}
	}
	return out
}

// Reencode makes a version go out as other bytes of the same meaning from now on, until this process ends. An Envoy that rejected a
// version ACKs the identical bytes without applying them (envoyproxy/envoy: the hash of what was received is kept before it is checked), so
// that a version which shall be judged again has to look new.
func (c *Cache) Reencode(ctx context.Context, name string, version secret.Version) error {
	c.mu.Lock()
	if c.marks[name] == nil {
		c.marks[name] = map[secret.Version]mark{}
	}
	c.marks[name][version] = newMark()
	_, inMemory := c.resources[name][version]
	c.mu.Unlock()
	if !inMemory { // it is encoded when a group moves to it
		return nil
	}
	res, err := c.read(ctx, name, version)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inUse(name, version) {
		c.keep(res)
	}
	return nil
}

// encode makes the shared body of a stored version, with its mark if it has one.
func (c *Cache) encode(r record) (*Resource, error) {
	c.mu.RLock()
	m := c.marks[r.Name][r.Version]
	c.mu.RUnlock()
	return encode(r, m)
}
