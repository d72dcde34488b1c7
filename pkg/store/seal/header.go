package seal

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/sds-server/sds-server/pkg/store"
)

// HeaderKey is where the data key lies, sealed by age: the only entry that is not sealed by it. It does not exist for the
// users of a Store.
const HeaderKey = "meta/sealed-data-key"

// headerMark begins the header: format, then the public key it is sealed to (for the hint only), then a newline and an age
// file that holds the 32 bytes of the data key.
const headerMark = "sds-server/seal/1 "

// wrap seals the data key to identity and returns the header.
func wrap(dataKey []byte, identity *age.X25519Identity) ([]byte, error) {
	var header bytes.Buffer
	header.WriteString(headerMark + identity.Recipient().String() + "\n")
	w, err := age.Encrypt(&header, identity.Recipient())
	if err == nil {
		_, err = w.Write(dataKey)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("seal the data key: %w", err)
	}
	return header.Bytes(), nil
}

// unwrap opens the header with the identity that was read from keyFile.
func unwrap(header []byte, identity *age.X25519Identity, keyFile string) ([]byte, error) {
	damaged := &store.Fault{
		Path: HeaderKey, Message: "the sealed data key is damaged",
		Hint: "restore the store from a copy; nothing was changed",
	}
	line, sealed, ok := bytes.Cut(header, []byte("\n"))
	recipient, marked := strings.CutPrefix(string(line), headerMark)
	if !ok || !marked {
		return nil, damaged
	}
	reader, err := age.Decrypt(bytes.NewReader(sealed), identity)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return nil, &store.Fault{
			Path: keyFile, Message: "seal key does not fit this store",
			Hint: fmt.Sprintf("the store is sealed to %.80q, this key is %s: restore the right key file; nothing was changed",
				recipient, identity.Recipient().String()),
		}
	}
	if err != nil {
		damaged.Err = err
		return nil, damaged
	}
	dataKey, err := io.ReadAll(io.LimitReader(reader, chacha20poly1305.KeySize+1))
	if err != nil || len(dataKey) != chacha20poly1305.KeySize {
		damaged.Err = err
		return nil, damaged
	}
	return dataKey, nil
}

// newDataKey returns 32 random bytes.
func newDataKey() []byte {
	key := make([]byte, chacha20poly1305.KeySize)
	// It never fails: package crypto/rand ends the process instead.
	_, _ = rand.Read(key)
	return key
}
