package main

import (
	"io"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/sds-server/sds-server/internal/app"
	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
)

func (c *cli) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", GroupID: "server", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := map[string]string{"version": version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
			return c.print(v, func(io.Writer) error {
				return c.printf("sds-server %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			})
		},
	}
}

func (c *cli) init() *cobra.Command {
	var o app.InitOptions
	cmd := &cobra.Command{
		Use: "init --dir DIR", Short: "Make a configuration, a seal key, and a private CA for the xDS channel", GroupID: "server", Args: cobra.NoArgs,
		Long: `Makes a directory with a configuration that works as it is (sds-server.yaml), the seal key, a store with a private CA for the xDS channel,
and the server's certificate for that channel. It overwrites nothing.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.subject = "init"
			made, err := app.Init(cmd.Context(), o)
			if err != nil {
				return err
			}
			return c.print(made, func(io.Writer) error {
				for _, f := range made.Files {
					if err := c.printf("made %s\n", f); err != nil {
						return err
					}
				}
				return c.printf("\nnext: add an issuer and a certificate to the configuration (its comments show how), then\n  sds-server serve -c %s\n", made.Config)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Dir, "dir", "", "`directory` to make")
	flags.StringArrayVar(&o.Groups, "group", nil, "node `group`, in the order of the waves; repeat it (default canary and production)")
	flags.StringVar(&o.Listen, "listen", "127.0.0.1:18000", "`address` of the SDS listener for mutual TLS")
	flags.StringArrayVar(&o.ServerNames, "server-name", nil, "name or address in the server's certificate; repeat it (default localhost and the listener's address)")
	_ = cmd.MarkFlagRequired("dir")
	_ = cmd.MarkFlagDirname("dir")
	return cmd
}

func (c *cli) store() *cobra.Command {
	cmd := &cobra.Command{Use: "store", Short: "The store's file, offline", GroupID: "server"}
	var path string
	check := &cobra.Command{
		Use: "check", Short: "Check the store's file for damage, in a process of its own", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if path != "" { // the child of a check
				if code := bbolt.ReportCheck(cmd.Context(), path, c.out); code != exitDone {
					return &exitError{code}
				}
				return nil
			}
			cfg, err := config.Load(c.file)
			if err != nil {
				return err
			}
			file := app.StoreFile(cfg)
			if err := app.CheckStore(cmd.Context(), cfg); err != nil {
				return err
			}
			return c.print(map[string]any{"ok": true, "file": file}, func(io.Writer) error { return c.printf("%s: ok\n", filepath.Clean(file)) })
		},
	}
	check.Flags().StringVar(&path, "in-process", "", "check this file here")
	_ = check.Flags().MarkHidden("in-process")
	cmd.AddCommand(check)
	return parent(cmd)
}

func (c *cli) serve() *cobra.Command {
	var debug, jsonLog bool
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the server", GroupID: "server", Args: cobra.NoArgs,
		Long: `Runs the server until it gets SIGTERM or SIGINT. SIGHUP, or a change of the configuration file, reloads certificates, groups,
rollout and issuers.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return app.Run(cmd.Context(), app.Options{
				ConfigFile: c.file, Version: version, Log: app.NewLogger(c.errs, debug, jsonLog),
			})
		},
	}
	cmd.Flags().BoolVar(&debug, "debug", false, "log each request, too")
	cmd.Flags().BoolVar(&jsonLog, "log-json", false, "log JSON lines")
	return cmd
}
