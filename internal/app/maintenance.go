package app

import (
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/issuer/maintenance"
)

// maintenances are the configured issuers with their planned windows and status pages.
func maintenances(cfg *config.Config) []maintenance.Issuer {
	out := make([]maintenance.Issuer, 0, len(cfg.Issuers))
	for _, i := range cfg.Issuers {
		out = append(out, maintenance.Issuer{Name: i.Name, Windows: plannedWindows(i), StatusURL: i.StatusURL})
	}
	return out
}

func plannedWindows(i config.Issuer) []maintenance.Window {
	out := make([]maintenance.Window, 0, len(i.Maintenance))
	for _, m := range i.Maintenance {
		out = append(out, maintenance.Window{From: m.From, To: m.To})
	}
	return out
}

// liveIssuers are what the operator API shows of the issuers in force.
func (s *server) liveIssuers(cfg *config.Config) []admin.ConfiguredIssuer {
	out := make([]admin.ConfiguredIssuer, 0, len(cfg.Issuers))
	for _, i := range cfg.Issuers {
		one := admin.ConfiguredIssuer{
			Name: i.Name, Directory: i.Directory, Email: i.Email, Profile: i.Profile, CAFile: i.CAFile, RootsFile: i.RootsFile,
			RootsUnchecked: i.Roots == "unchecked", Windows: plannedWindows(i), CA: s.cas[i.Name],
			Warnings: func(now time.Time) []admin.Warning { return issuerWarnings(cfg, i.Name, now) },
		}
		if i.EAB != nil {
			one.EAB = i.EAB.KID
		}
		out = append(out, one)
	}
	return out
}

func issuerWarnings(cfg *config.Config, name string, now time.Time) []admin.Warning {
	out := []admin.Warning{}
	for _, p := range cfg.IssuerWarnings(name, now) {
		out = append(out, admin.Warning{Path: p.Path, Message: p.Message, Hint: p.Hint})
	}
	return out
}
