package main

import (
	"strings"

	"github.com/spf13/cobra"
)

// unbuilt lists the commands and flags of the interface that are not built yet. Each is refused by name rather than pretended; the list
// ends empty.
var unbuilt = []string{
	"revoke", "failover", "issuers rollover",
	"probe", "drill", "audit export", "report", "rekey", "store migrate",
}

// refuseUnbuilt adds a hidden command or flag for each of them.
func refuseUnbuilt(root *cobra.Command) {
	for _, path := range unbuilt {
		cmd, words := root, strings.Fields(path)
		for i, word := range words {
			if name, ok := strings.CutPrefix(word, "--"); ok {
				flag := cmd.Flags().VarPF(refusedFlag(path), name, "", "")
				flag.NoOptDefVal, flag.Hidden = "true", true
				break
			}
			child := childNamed(cmd, word)
			if child == nil {
				child = refusedCommand(strings.Join(words[:i+1], " "))
				cmd.AddCommand(child)
			}
			cmd = child
		}
	}
}

func refusedCommand(path string) *cobra.Command {
	words := strings.Fields(path)
	return &cobra.Command{
		Use: words[len(words)-1], Hidden: true, DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error { return notSupported(path) },
	}
}

func notSupported(path string) *usageError { return &usageError{text: "not supported yet: " + path} }

// refusedFlag is a flag that cannot be set: it names itself.
type refusedFlag string

// Set implements pflag.Value.
func (f refusedFlag) Set(string) error { return notSupported(string(f)) }

// String implements pflag.Value.
func (f refusedFlag) String() string { return "" }

// Type implements pflag.Value.
func (f refusedFlag) Type() string { return "bool" }

func childNamed(parent *cobra.Command, name string) *cobra.Command {
	for _, c := range parent.Commands() {
		if c.Name() == name {
			return c
		}
	}
	return nil
}
