package acme

import (
	"sync"

	legolog "github.com/go-acme/lego/v4/log"
)

// silenceLego takes lego's global logger away, which writes to standard error and ends the process in its Fatal functions. It
// runs once for the process, in New, and so before the first use of lego, because this package is its only importer: nothing
// reads the variable while it is written. What lego would log, this package returns in its errors.
var silenceLego = sync.OnceFunc(func() { legolog.Logger = silentLogger{} })

// silentLogger drops everything, and does not exit.
type silentLogger struct{}

func (silentLogger) Fatal(...any)          {}
func (silentLogger) Fatalln(...any)        {}
func (silentLogger) Fatalf(string, ...any) {}
func (silentLogger) Print(...any)          {}
func (silentLogger) Println(...any)        {}
func (silentLogger) Printf(string, ...any) {}
