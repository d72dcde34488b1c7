package main

import (
	"strings"

	"github.com/spf13/cobra"
)

// unbuilt lists the commands of the interface that are not built yet. Each is refused by name rather than pretended; the list ends empty.
var unbuilt = []string{
	"explain", "secrets hold", "revoke", "failover", "budget", "issuers list", "issuers show", "issuers test", "issuers rollover",
	"rollout start", "rollout pause", "rollout resume", "rollout abort", "rollout undo", "verify", "probe", "drill",
	"audit list", "audit verify", "audit export", "report", "identity renew", "rekey", "store migrate",
}

// refuseUnbuilt adds a hidden command for each of them.
func refuseUnbuilt(root *cobra.Command) {
	for _, path := range unbuilt {
		parent, words := root, strings.Fields(path)
		for i, word := range words {
			child := childNamed(parent, word)
			if child == nil {
				child = &cobra.Command{
					Use: word, Hidden: true, DisableFlagParsing: true,
					RunE: func(*cobra.Command, []string) error {
						return usage("not supported yet: %s", strings.Join(words[:i+1], " "))
					},
				}
				parent.AddCommand(child)
			}
			parent = child
		}
	}
}

func childNamed(parent *cobra.Command, name string) *cobra.Command {
	for _, c := range parent.Commands() {
		if c.Name() == name {
			return c
		}
	}
	return nil
}
