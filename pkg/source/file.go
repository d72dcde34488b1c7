package source

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// file is a secret that is read from files. It belongs to Load and Run.
type file struct {
	name  string
	kind  secret.Kind
	paths []string

	judged    bool
	seen      [sha256.Size]byte // of the content that was judged last
	candidate [sha256.Size]byte // of a content that was found once, and has to be found again
	since     time.Time         // when it was found
	good      *secret.Secret    // the last good one; nil: none yet
	accepted  bool              // good was handed on
	held      string
	err       error // of the content that was judged last, or of handing it on
}

// configured returns the secrets that are read from files, as if they were new.
func configured(c Config) []*file {
	var all []*file
	for _, v := range c.ValidationContexts {
		all = append(all, &file{name: v.Name, kind: secret.KindValidationContext, paths: v.Files})
	}
	for _, g := range c.Generics {
		all = append(all, &file{name: g.Name, kind: secret.KindGenericSecret, paths: []string{g.File}})
	}
	return all
}

func (f *file) same(other *file) bool {
	return f.kind == other.kind && slices.Equal(f.paths, other.paths)
}

// paths are all files that are read.
func (s *Source) paths() []string {
	var paths []string
	for _, f := range configured(s.current()) {
		paths = append(paths, f.paths...)
	}
	return paths
}

// lookFile takes up a new content, and returns when to look again without an event.
func (s *Source) lookFile(ctx context.Context, f *file, now time.Time) time.Time {
	contents, err := s.read(f)
	seen := digest(contents, err)
	switch {
	case !f.judged:
	case seen == f.candidate:
		if now.Sub(f.since) < debounce { // looked at for another reason
			return f.since.Add(debounce)
		}
	case seen != f.seen: // it may be half written
		f.candidate, f.since = seen, now
		return now.Add(debounce)
	case f.good != nil && f.accepted && f.err == nil:
		return s.offerAgain(ctx, f, now)
	}
	f.judged, f.seen, f.candidate = true, seen, [sha256.Size]byte{}
	var parsed *secret.Secret
	if err == nil {
		parsed, err = f.parse(contents, now)
	}
	if err != nil {
		s.fail(ctx, f, err)
		return now.Add(lookInterval) // a clock may make it good
	}
	if f.good == nil || s.Sink.Version(f.good) != s.Sink.Version(parsed) {
		f.good, f.accepted = parsed, false
	}
	return s.offer(ctx, f, now)
}

// offerAgain hands a content on that is served nowhere: its name was out of the configuration for a while.
func (s *Source) offerAgain(ctx context.Context, f *file, now time.Time) time.Time {
	st := s.Sink.Standing(f.name, s.Sink.Version(f.good))
	f.held = st.Held
	if st.Nowhere && st.Held == "" {
		return s.offer(ctx, f, now)
	}
	return now.Add(lookInterval)
}

// offer hands the good content on.
func (s *Source) offer(ctx context.Context, f *file, now time.Time) time.Time {
	err := s.Sink.Accept(ctx, Proposal{Secret: f.good, Reason: "read from " + describe(f.paths)})
	if errors.Is(err, ErrHeld) { // the files are as good as before; an operator decides
		f.held, f.accepted = err.Error(), true
		s.Log.WarnContext(ctx, "secret from files is held", "secret", f.good, "err", err)
		f.err = nil
		return now.Add(lookInterval)
	}
	if err != nil {
		s.fail(ctx, f, err)
		return now.Add(lookInterval)
	}
	f.err, f.held = nil, ""
	if !f.accepted {
		s.Log.InfoContext(ctx, "secret taken up from files", "secret", f.good, "version", s.Sink.Version(f.good).Short())
	}
	f.accepted = true
	return now.Add(lookInterval)
}

// fail notes a failure; one that stays the same is logged once.
func (s *Source) fail(ctx context.Context, f *file, err error) {
	if f.err == nil || f.err.Error() != err.Error() {
		s.Log.ErrorContext(ctx, "files of a secret not taken up, the last good content stays", "secret", f.name, "kind", string(f.kind), "err", err)
	}
	f.err = err
}

func (s *Source) fileStatus(f *file, now time.Time) Status {
	st := Status{Name: f.name, Kind: f.kind, Err: f.err, Held: f.held}
	if f.good == nil {
		return st
	}
	st.Version = s.Sink.Version(f.good)
	if st.CAEnd = f.good.NextCAEnd(now); st.CAEnd.IsZero() {
		st.CAEnd = f.good.NotAfter()
	}
	return st
}

// read returns the content of each file, up to a little more than may be in it.
func (s *Source) read(f *file) ([][]byte, error) {
	limit := int64(secret.MaxCASize)
	if f.kind == secret.KindGenericSecret {
		limit = secret.MaxGenericSize + 2 // the end of its line
	}
	contents := make([][]byte, 0, len(f.paths))
	for _, path := range f.paths {
		if f.kind == secret.KindGenericSecret && s.CheckPrivate != nil {
			if err := s.CheckPrivate(path); err != nil {
				return nil, err
			}
		}
		data, err := readFile(path, limit+1)
		if err != nil {
			return nil, err
		}
		contents = append(contents, data)
	}
	return contents, nil
}

func readFile(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // a pipe would be waited for
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close() // only read
	return io.ReadAll(io.LimitReader(file, limit))
}

// parse judges a content.
func (f *file) parse(contents [][]byte, now time.Time) (*secret.Secret, error) {
	if f.kind == secret.KindGenericSecret {
		return secret.ParseGeneric(f.name, contents[0])
	}
	s, err := secret.ParseValidationContext(f.name, contents...)
	if err != nil {
		return nil, err
	}
	return s, s.Validate(now, secret.Expectation{})
}

// digest is one of the contents; what cannot be read counts by its error.
func digest(contents [][]byte, err error) [sha256.Size]byte {
	sum := sha256.New()
	for _, data := range contents {
		one := sha256.Sum256(data)
		sum.Write(one[:]) // a hash never fails
	}
	if err != nil {
		fmt.Fprint(sum, err) // likewise
	}
	return [sha256.Size]byte(sum.Sum(nil))
}

// describe names the files for a reason: the first few of many.
func describe(paths []string) string {
	const shown = 3
	if len(paths) <= shown {
		return strings.Join(paths, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(paths[:shown], ", "), len(paths)-shown)
}
