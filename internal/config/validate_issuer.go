package config

import (
	"fmt"
	"maps"
	"net/mail"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer/budget"
)

// issuers checks the authorities and the accounts there.
func (v *validator) issuers() {
	names := map[string]string{}
	for i := range v.Issuers {
		is, path := &v.Issuers[i], fmt.Sprintf("issuers[%d]", i)
		v.uniqueName(names, path+".name", is.Name)
		v.directory(path, is)
		v.oneOf(path+".roots", is.Roots, rootsChecked, rootsUnchecked)
		if is.Roots == rootsUnchecked && is.RootsFile != "" {
			v.add(path+".roots_file", "contradicts roots: unchecked")
		}
		if is.Email != "" {
			if a, err := mail.ParseAddress(is.Email); err != nil || a.Address != is.Email {
				v.add(path+".email", "%q is not a mail address", is.Email)
			}
		}
		if !is.AcceptTOS {
			v.addHint(path+".accept_tos", "must be true", "read the authority's terms of service: "+
				"termsOfService in the ACME directory has their address")
		}
		if is.EAB != nil {
			if is.EAB.KID == "" {
				v.add(path+".eab.kid", "empty")
			}
			if is.EAB.HMACKeyFile == "" {
				v.add(path+".eab.hmac_key_file", "empty")
			}
		}
		v.budget(path+".budget", is.Budget)
		for j, m := range is.Maintenance {
			v.period(fmt.Sprintf("%s.maintenance[%d]", path, j), m.From, m.To)
		}
		if is.StatusURL != "" {
			v.url(path+".status_url", is.StatusURL, "http", "https")
		}
	}
}

// directory wants exactly one of ca and directory.
func (v *validator) directory(path string, is *Issuer) {
	preset, _ := Directory(is.CA) // finish fills it in: a loaded Config stays valid
	filledIn := is.Directory == preset && !v.isSet(path+".directory")
	codes := slices.Sorted(maps.Keys(directories()))
	switch {
	case is.CA == "" && is.Directory == "":
		v.add(path, "needs ca or directory")
	case is.CA != "" && is.Directory != "" && !filledIn:
		v.add(path+".directory", "contradicts ca")
	case is.CA == "":
		v.url(path+".directory", is.Directory, "https")
	default:
		if !slices.Contains(codes, is.CA) {
			hint := didYouMean(is.CA, codes)
			if hint == "" {
				hint = "give its URL as directory"
			}
			v.addHint(path+".ca", fmt.Sprintf("no authority has the code %q", is.CA), hint)
		}
	}
}

func (v *validator) budget(path string, b Budget) {
	if b.Share <= 0 || b.Share > 1 {
		v.add(path+".share", "must be above 0 and at most 1")
	}
	names := map[string]string{}
	for i, l := range b.Limits {
		limit := fmt.Sprintf("%s.limits[%d]", path, i)
		if !slices.Contains(budget.Names(), l.Name) {
			hint := didYouMean(l.Name, budget.Names())
			if hint == "" {
				hint = "the limits are " + strings.Join(budget.Names(), ", ")
			}
			v.addHint(limit+".name", fmt.Sprintf("%q is not the name of a limit", l.Name), hint)
		}
		v.unique(names, limit+".name", l.Name)
		v.atLeastOne(limit+".burst", l.Burst)
		v.positive(limit+".refill", l.Refill)
		if l.Burst > 0 && l.Refill > budget.LongestFill/time.Duration(l.Burst) {
			v.add(limit+".refill", "filling it would take over 100 years")
		}
	}
}

// knownIssuer is a problem if no issuer has the name.
func (v *validator) knownIssuer(path, name string) {
	var names []string
	for _, is := range v.Issuers {
		names = append(names, is.Name)
	}
	if !slices.Contains(names, name) {
		v.addHint(path, fmt.Sprintf("no issuer is named %q", name), didYouMean(name, names))
	}
}
