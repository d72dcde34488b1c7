package app

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/internal/identity"
	"github.com/sds-server/sds-server/pkg/sds"
	"github.com/sds-server/sds-server/pkg/watch"
)

const (
	// channelDebounce is how long changes of the files are gathered: a pair is written in two steps.
	channelDebounce = 200 * time.Millisecond
	// channelLook is how often the files and the time left are looked at besides: some file systems tell of no changes.
	channelLook = time.Minute
	// endingLines is how many client certificates are warned of one by one at a time.
	endingLines = 10
	// channelWarnings is the time between two warnings about one certificate.
	channelWarnings = 24 * time.Hour
)

// channel is the TLS side of one SDS listener, and the files that it comes from.
type channel struct {
	listener string // its address
	files    config.ListenerTLS
	tls      *sds.Channel
	ok       atomic.Bool // what is in the files is in force

	// What follows belongs to Run.
	seen   [sha256.Size]byte // of the files, when they were read last
	warned time.Time         // that the certificate ends
	tried  time.Time         // to renew it
}

// channels keeps the certificates of the SDS listeners fresh: changed files are taken up, and those that this server's own CA has signed
// are renewed in time.
type channels struct {
	authority *identity.Authority // nil: none, so nothing is renewed
	log       *slog.Logger
	signals   <-chan os.Signal // ask for a look at the files
	all       []*channel       // complete before Run

	// ending are client certificates that were warned of, by identity. It belongs to Run.
	ending map[string]time.Time
}

// open reads the files of a listener.
func (c *channels) open(listener string, files config.ListenerTLS) (*sds.Channel, error) {
	ch := &channel{listener: listener, files: files, seen: digest(files)}
	loaded, err := sds.TLSConfig(files.CertFile, files.KeyFile, files.ClientCAFile)
	if err != nil {
		return nil, err
	}
	ch.tls = sds.NewChannel(loaded)
	ch.ok.Store(true)
	c.all = append(c.all, ch)
	return ch.tls, nil
}

// of returns what the channel of a listener is at; nil for a listener without TLS.
func (c *channels) of(listener string) *sds.Channel {
	for _, ch := range c.all {
		if ch.listener == listener {
			return ch.tls
		}
	}
	return nil
}

// Run looks at the files when they change, when a signal asks for it, and now and then. It returns nil when ctx ends.
func (c *channels) Run(ctx context.Context) error {
	if len(c.all) == 0 {
		<-ctx.Done()
		return nil
	}
	watching, err := watch.New(c.paths())
	if err != nil {
		c.log.WarnContext(ctx, "the files of xds.listeners[].tls are not watched; they are looked at every minute, and on SIGHUP", "err", err)
	} else {
		defer watching.Close()
	}
	c.loop(ctx, watching)
	return nil
}

// loop is Run, without a watch where that is nil.
func (c *channels) loop(ctx context.Context, watching *watch.Paths) {
	var events <-chan fsnotify.Event
	var failures <-chan error
	if watching != nil {
		events, failures = watching.Events(), watching.Errors()
	}
	look := time.NewTicker(channelLook)
	defer look.Stop()
	due := time.After(0) // what changed since they were read, and what is due already
	for {
		select {
		case <-ctx.Done():
			return
		case <-due:
			due = nil
			if watching != nil {
				watching.Follow(c.paths())
			}
			c.look(ctx, time.Now())
			continue
		case <-events:
		case err := <-failures: // events were lost
			c.log.WarnContext(ctx, "watching the files of xds.listeners[].tls", "err", err)
		case <-c.signals:
		case <-look.C:
		}
		if due == nil { // later changes do not put it off
			due = time.After(channelDebounce)
		}
	}
}

func (c *channels) paths() []string {
	var paths []string
	for _, ch := range c.all {
		for _, path := range []string{ch.files.CertFile, ch.files.KeyFile, ch.files.ClientCAFile} {
			if abs, err := filepath.Abs(path); err == nil { // else there is no working directory
				paths = append(paths, abs)
			}
		}
	}
	return paths
}

// look takes up what has changed, and renews what is due.
func (c *channels) look(ctx context.Context, now time.Time) {
	c.warnOfNodes(ctx, now)
	renewed := map[string]bool{} // certificate files: listeners may share them
	for _, ch := range c.all {
		c.reload(ctx, ch, now)
		leaf := ch.leaf()
		// A try that fails half-way changes the directory, which brings the next look.
		if !renewalDue(leaf, now) || renewed[ch.files.CertFile] || now.Sub(ch.tried) < channelLook {
			continue
		}
		ch.tried = now
		err := c.renew(ch, leaf, now)
		if renewed[ch.files.CertFile] = err == nil; err == nil {
			c.log.InfoContext(ctx, "certificate of the xDS channel renewed", "listener", ch.listener, "file", ch.files.CertFile)
			continue // the watch takes it up
		}
		if now.Sub(ch.warned) >= channelWarnings {
			ch.warned = now
			c.log.WarnContext(ctx, "certificate of the xDS channel ends, and is not renewed by this server", "listener", ch.listener,
				"file", ch.files.CertFile, "not_after", leaf.NotAfter.UTC(), "err", err)
		}
	}
}

// warnOfNodes says once for each client certificate that it is close to its end and was not renewed.
func (c *channels) warnOfNodes(ctx context.Context, now time.Time) {
	ending := map[string]time.Time{}
	for _, ch := range c.all {
		maps.Copy(ending, ch.tls.Ending(now))
	}
	lines, more := 0, 0
	for _, id := range slices.Sorted(maps.Keys(ending)) {
		if ending[id].Equal(c.ending[id]) {
			continue
		}
		if lines++; lines > endingLines {
			more++
			continue
		}
		c.log.WarnContext(ctx, "client certificate of a node ends, and was not renewed", "identity", id, "not_after", ending[id].UTC())
	}
	if more > 0 {
		c.log.WarnContext(ctx, "client certificates of more nodes end, and were not renewed", "nodes", more)
	}
	c.ending = ending
}

// reload takes up files with another content than when they were read last. Files that are broken change nothing, and are logged once.
func (c *channels) reload(ctx context.Context, ch *channel, now time.Time) {
	seen := digest(ch.files)
	if seen == ch.seen {
		return
	}
	ch.seen = seen
	log := c.log.With("listener", ch.listener)
	loaded, err := sds.TLSConfig(ch.files.CertFile, ch.files.KeyFile, ch.files.ClientCAFile)
	if err == nil {
		err = closedToOthers(ch.files.KeyFile)
	}
	if err == nil && !now.Before(loaded.Certificates[0].Leaf.NotAfter) && now.Before(ch.leaf().NotAfter) {
		err = errors.New("the new certificate has ended")
	}
	ch.ok.Store(err == nil)
	if err != nil {
		log.ErrorContext(ctx, "certificate of the xDS channel not reloaded, the old one stays", "err", err)
		return
	}
	closed := ch.tls.Replace(loaded)
	ch.warned = time.Time{}
	log.InfoContext(ctx, "certificate of the xDS channel reloaded", "not_after", ch.leaf().NotAfter.UTC(), "closed_connections", closed)
}

// closedToOthers refuses a key that everyone can read or change, as the configuration does.
func closedToOthers(path string) error {
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&0o006 != 0 {
		err = fmt.Errorf("%s is open to everyone (mode %04o)", path, info.Mode().Perm())
	}
	return err
}

// renew writes a new certificate and key over the files. The error says why this server may not.
func (c *channels) renew(ch *channel, leaf *x509.Certificate, now time.Time) error {
	dir := filepath.Dir(ch.files.CertFile)
	switch {
	case c.authority == nil:
		return identity.ErrForeign
	case !ch.ok.Load():
		return errors.New("the files hold something else than what is in force")
	case dir != filepath.Dir(ch.files.KeyFile):
		return errors.New("cert_file and key_file are not in one directory, so they cannot be replaced at once")
	}
	cert, key, err := c.authority.RenewServer(leaf, now, serverLife)
	if err != nil {
		return err
	}
	return identity.Publish(dir, []identity.File{
		{Name: filepath.Base(ch.files.KeyFile), Data: key, Mode: 0o600}, {Name: filepath.Base(ch.files.CertFile), Data: cert, Mode: 0o644},
	})
}

func (ch *channel) leaf() *x509.Certificate { return ch.tls.Config().Certificates[0].Leaf }

// renewalDue reports whether 1/3 or less of a certificate's life is left.
func renewalDue(leaf *x509.Certificate, now time.Time) bool {
	return leaf.NotAfter.Sub(now) <= leaf.NotAfter.Sub(leaf.NotBefore)/3
}

// digest is one of the content and the rights of the files; what cannot be read counts by its error.
func digest(files config.ListenerTLS) [sha256.Size]byte {
	sum := sha256.New()
	for _, path := range []string{files.CertFile, files.KeyFile, files.ClientCAFile} {
		data, err := os.ReadFile(path)
		if err != nil {
			data = []byte(err.Error())
		}
		if info, err := os.Stat(path); err == nil {
			data = append(data, info.Mode().String()...)
		}
		one := sha256.Sum256(data)
		_, _ = io.Writer(sum).Write(one[:]) // a hash never fails
	}
	return [sha256.Size]byte(sum.Sum(nil))
}

// certificateNames are those that the certificate in force is valid for.
func certificateNames(c *sds.Channel) []string {
	if c == nil {
		return nil
	}
	leaf := c.Config().Certificates[0].Leaf
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}
