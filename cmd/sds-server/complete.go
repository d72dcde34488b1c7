package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/admin"
)

// completeTime bounds the question to the server: a shell waits for the answer.
const completeTime = 2 * time.Second

// names asks the running server for what a word may be; no answer is no proposal.
type names func(ctx context.Context) []string

func (n names) propose(ctx context.Context) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(ctx, completeTime)
	defer cancel()
	return n(ctx), cobra.ShellCompDirectiveNoFileComp
}

// first completes the one argument of a command.
func (n names) first(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return n.propose(cmd.Context())
}

// rest completes each argument of a command with what does not stand there yet.
func (n names) rest(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	all, directive := n.propose(cmd.Context())
	return slices.DeleteFunc(all, func(name string) bool { return slices.Contains(args, name) }), directive
}

// flag completes the value of a flag of cmd.
func (n names) flag(cmd *cobra.Command, flag string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return n.propose(cmd.Context())
	}) // the flag exists, and has no other completion
}

// secretNames are the secrets that the server has.
func (c *cli) secretNames(ctx context.Context) []string {
	var s admin.Secrets
	if c.get(ctx, "/v1/secrets", &s) != nil {
		return nil
	}
	out := make([]string, 0, len(s.Secrets))
	for _, h := range s.Secrets {
		out = append(out, h.Name)
	}
	return out
}

// statusNames lists things of the status.
func (c *cli) statusNames(list func(admin.Status) []string) names {
	return func(ctx context.Context) []string {
		var s admin.Status
		if c.get(ctx, "/v1/status", &s) != nil {
			return nil
		}
		return list(s)
	}
}

// certificateNames are the configured certificates.
func (c *cli) certificateNames() names {
	return c.statusNames(func(s admin.Status) (out []string) {
		for _, cert := range s.Certificates {
			out = append(out, cert.Name)
		}
		return out
	})
}

// groupNames are the configured groups.
func (c *cli) groupNames() names {
	return c.statusNames(func(s admin.Status) (out []string) {
		for _, g := range s.Groups {
			out = append(out, g.Name)
		}
		return out
	})
}

// issuerNames are the configured issuers.
func (c *cli) issuerNames() names {
	return c.statusNames(func(s admin.Status) (out []string) {
		for _, i := range s.Issuers {
			out = append(out, i.Name)
		}
		return out
	})
}

// heldNames are the secrets with held versions.
func (c *cli) heldNames() names {
	return c.statusNames(func(s admin.Status) (out []string) {
		for _, h := range s.Held {
			out = append(out, h.Secret)
		}
		return out
	})
}

// snapshotNumbers are the snapshots, the newest first.
func (c *cli) snapshotNumbers(ctx context.Context) []string {
	var s admin.Snapshots
	if c.get(ctx, "/v1/snapshots", &s) != nil {
		return nil
	}
	out := make([]string, 0, len(s.Snapshots))
	for i := range s.Snapshots {
		h := s.Snapshots[len(s.Snapshots)-1-i]
		out = append(out, fmt.Sprintf("%d\t%s", h.Number, h.Reason))
	}
	return out
}
