package app

import (
	"io"
	"log/slog"
)

// NewLogger returns the server's logger. Debug adds a line for each request.
func NewLogger(w io.Writer, debug, json bool) *slog.Logger {
	opts := &slog.HandlerOptions{Level: slog.LevelInfo}
	if debug {
		opts.Level = slog.LevelDebug
	}
	if json {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
