package acme

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	legoacme "github.com/go-acme/lego/v4/acme"
	"github.com/go-acme/lego/v4/acme/api"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/store"
)

// account is our account at a CA, at issuer.AccountKey in the store.
type account struct {
	// Directory is the CA that it belongs to.
	Directory string `json:"directory"`
	// Key is ECDSA P-256, PEM. It is stored before it is registered, so that a crash in between registers the same key again,
	// which gives the same account (RFC 8555, Section 7.3).
	Key string `json:"key"`
	// KID is the account's URL; empty until it is registered.
	KID     string    `json:"kid"`
	Created time.Time `json:"created"`
}

// accounts keeps the account of one issuer.
type accounts struct {
	// turn has one token: whoever holds it may read and change what follows, also while the CA is being asked.
	turn     chan struct{}
	key      accountKey // the zero value until it is known
	revision int64
	record   account
}

// ensureAccount returns the registered account, and registers it first where that is needed. lost is the URL of an account
// that the CA has just said it does not know, or "": it is registered again with the same key.
func (i *Issuer) ensureAccount(ctx context.Context, lost string) (accountKey, error) {
	a := &i.accounts
	select {
	case a.turn <- struct{}{}:
	case <-ctx.Done():
		return accountKey{}, context.Cause(ctx)
	}
	defer func() { <-a.turn }()
	if a.key.kid != "" && a.key.kid != lost {
		return a.key, nil
	}
	err := i.loadOrRegister(ctx, lost)
	if errors.Is(err, store.ErrConflict) {
		// Another Issuer of the same name (there are two for a moment after a reload) was first: its account counts.
		err = i.loadOrRegister(ctx, lost)
	}
	if err != nil {
		return accountKey{}, i.classify(ctx, "account", err)
	}
	return a.key, nil
}

// loadOrRegister sets the key; the turn is held.
func (i *Issuer) loadOrRegister(ctx context.Context, lost string) error {
	a := &i.accounts
	if err := i.loadAccount(ctx); err != nil {
		return err
	}
	if a.record.KID != "" && a.record.KID != lost {
		a.key.kid = a.record.KID
		return nil
	}
	if lost != "" {
		i.log.WarnContext(ctx, "the CA does not know the account any more: it is registered again", "kid", lost)
	}
	kid, err := i.register(ctx)
	if err != nil {
		return err
	}
	a.record.KID = kid
	if err := i.saveAccount(ctx); err != nil {
		return err
	}
	a.key.kid = kid
	return nil
}

// loadAccount reads the account, or makes and stores one with a new key if there is none for this directory.
func (i *Issuer) loadAccount(ctx context.Context) error {
	a := &i.accounts
	a.key = accountKey{}
	entry, err := i.options.Store.Get(ctx, issuer.AccountKey(i.options.Name))
	switch {
	case errors.Is(err, store.ErrNotFound):
		a.record, a.revision = account{}, 0
	case err != nil:
		return fmt.Errorf("read: %w", err)
	default:
		a.record, a.revision = account{}, entry.Revision
		if err := json.Unmarshal(entry.Value, &a.record); err != nil {
			return fmt.Errorf("%s: %w", entry.Key, err)
		}
	}
	if a.record.Directory == i.options.Directory {
		a.key.signer, err = decodeKey(a.record.Key)
		return err
	}
	signer, err := newKey("ecdsa-p256")
	if err != nil {
		return err
	}
	text, err := encodeKey(signer)
	if err != nil {
		return err
	}
	a.record = account{Directory: i.options.Directory, Key: text, Created: time.Now().UTC()}
	if err := i.saveAccount(ctx); err != nil {
		return err
	}
	a.key.signer = signer
	return nil
}

func (i *Issuer) saveAccount(ctx context.Context) error {
	value, err := json.Marshal(i.accounts.record)
	if err != nil {
		return err
	}
	key := issuer.AccountKey(i.options.Name)
	revision, err := i.options.Store.Commit(ctx,
		[]store.Condition{{Key: key, Revision: i.accounts.revision}}, []store.Operation{store.Put(key, value)})
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	i.accounts.revision = revision
	return nil
}

// register asks for an account (RFC 8555, Section 7.3) and returns its URL. It may be repeated: the key decides.
func (i *Issuer) register(ctx context.Context) (kid string, err error) {
	request := legoacme.Account{TermsOfServiceAgreed: i.options.AcceptTOS}
	if i.options.Email != "" {
		request.Contact = []string{"mailto:" + i.options.Email}
	}
	eab, err := i.readEAB()
	if err != nil {
		return "", err
	}
	key := accountKey{signer: i.accounts.key.signer} // without the kid, the request carries the public key
	use := issuer.Use{Kind: issuer.UseAccount}
	if err := i.spend(ctx, use); err != nil {
		return "", err
	}
	err = i.conn.call(ctx, key, endpointNewAccount, func(core *api.Core) error {
		var got legoacme.ExtendedAccount
		var err error
		if eab == "" {
			got, err = core.Accounts.New(request)
		} else {
			got, err = core.Accounts.NewEAB(request, i.options.EAB.KID, eab)
		}
		kid = got.Location
		return err
	})
	if err == nil && kid == "" {
		err = &failure{err: errors.New("the CA gave no account URL"), endpoint: endpointNewAccount, status: 200}
	}
	if notCounted(err, endpointNewAccount) {
		i.giveBack(ctx, use)
		i.limited(ctx, use, err)
	}
	if err != nil {
		return "", i.classify(ctx, "register the account", err)
	}
	i.log.InfoContext(ctx, "account registered", "kid", kid)
	return kid, nil
}

// readEAB reads the key of the external account binding (base64url) when it is needed, so that a new file counts without a
// restart.
func (i *Issuer) readEAB() (string, error) {
	if i.options.EAB == nil {
		return "", nil
	}
	data, err := os.ReadFile(i.options.EAB.HMACKeyFile)
	if err != nil {
		return "", fmt.Errorf("external account binding: %w", err)
	}
	key := strings.TrimRight(strings.TrimSpace(string(data)), "=")
	if raw, err := base64.RawURLEncoding.DecodeString(key); err != nil || len(raw) == 0 {
		return "", fmt.Errorf("external account binding: %s: not a key in base64url", i.options.EAB.HMACKeyFile)
	}
	return key, nil
}
