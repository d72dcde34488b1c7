//go:build race

package main

// raceEnabled says that the tests, and so the server under test, run with the race detector.
const raceEnabled = true
