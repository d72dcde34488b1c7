package cache

import (
	"context"
	"crypto/rand"
	"slices"

	"github.com/sds-server/sds-server/pkg/secret"
)

// mark is white space that stands behind the PEM blocks of a version, so that its bytes differ from those sent before.
type mark string

// newMark returns 64 random bits as spaces and tabs, which every PEM reader skips.
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

// encode makes the shared body of a version.
func (c *Cache) encode(name string, version secret.Version, chainPEM, keyPEM []byte) (*Resource, error) {
	c.mu.RLock()
	m := c.marks[name][version]
	c.mu.RUnlock()
	return encode(name, version, slices.Concat(chainPEM, []byte(m)), slices.Concat(keyPEM, []byte(m)))
}
