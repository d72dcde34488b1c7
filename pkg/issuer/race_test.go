//go:build race

package issuer_test

// raceDetector makes long tests shorter: with it everything takes ten times as long.
const raceDetector = true
