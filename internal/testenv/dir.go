package testenv

import (
	"fmt"
	"os"
)

// ShortDir makes a fresh directory with mode 0700 and a short path, because the path of a Unix socket has at most 107
// bytes, which t.TempDir often exceeds. The caller removes it with os.RemoveAll.
func ShortDir() (string, error) {
	dir, err := os.MkdirTemp("", "sds")
	if err != nil {
		return "", fmt.Errorf("short directory: %w", err)
	}
	return dir, nil
}
