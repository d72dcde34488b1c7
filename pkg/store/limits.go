package store

import (
	"errors"
	"fmt"
)

// MaxKeyBytes is the length of the longest key; it is bbolt's limit. Longer keys in a Commit are ErrTooLarge.
const MaxKeyBytes = 32 << 10

// CheckCommit applies the rules that hold for every Commit before an engine looks at its medium: MaxOperations,
// MaxCommitBytes (the keys of conditions and operations, and the values that are put) and MaxKeyBytes are answered with
// ErrTooLarge; an empty key, a negative revision and a key in two operations are a mistake of the caller.
func CheckCommit(conditions []Condition, operations []Operation) error {
	if n := len(conditions) + len(operations); n > MaxOperations {
		return fmt.Errorf("%w: %d conditions and operations, at most %d are allowed", ErrTooLarge, n, MaxOperations)
	}
	bytes := 0
	for _, c := range conditions {
		if err := checkKey(c.Key); err != nil {
			return fmt.Errorf("condition: %w", err)
		}
		if c.Revision < 0 {
			return fmt.Errorf("condition on %q: negative revision %d", c.Key, c.Revision)
		}
		bytes += len(c.Key)
	}
	seen := make(map[string]struct{}, len(operations))
	for _, o := range operations {
		if err := checkKey(o.Key); err != nil {
			return fmt.Errorf("operation: %w", err)
		}
		if _, twice := seen[o.Key]; twice {
			return fmt.Errorf("operation: key %q stands in two operations", o.Key)
		}
		seen[o.Key] = struct{}{}
		bytes += len(o.Key)
		if !o.Delete {
			bytes += len(o.Value)
		}
	}
	if bytes > MaxCommitBytes {
		return fmt.Errorf("%w: %d bytes of keys and values, at most %d are allowed", ErrTooLarge, bytes, MaxCommitBytes)
	}
	return nil
}

func checkKey(key string) error {
	switch {
	case key == "":
		return errors.New("empty key")
	case len(key) > MaxKeyBytes:
		return fmt.Errorf("%w: a key of %d bytes, at most %d are allowed", ErrTooLarge, len(key), MaxKeyBytes)
	}
	return nil
}
