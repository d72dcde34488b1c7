package main

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestEachLineOfTheTourIsChecked needs no engine: what the README tells people to type is what make test-compose runs.
func TestEachLineOfTheTourIsChecked(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	lines, err := tourLines(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := matchTour(lines); err != nil {
		t.Error(err)
	}
	if err := matchTour(lines[:len(lines)-1]); err == nil {
		t.Error("a tour without its last line is taken")
	}
	if err := matchTour(slices.Concat(lines, []string{"docker compose top"})); err == nil || !strings.Contains(err.Error(), "docker compose top") {
		t.Errorf("a line that nothing checks is taken: %v", err)
	}
}

func TestOfficialImagesHaveStandIns(t *testing.T) {
	names, err := officialImages("../..")
	if err != nil {
		t.Fatal(err)
	}
	var repositories []string
	for _, name := range names {
		repository, tag, ok := strings.Cut(name, ":")
		if !ok || tag == "latest" {
			t.Errorf("%s is not pinned", name)
		}
		repositories = append(repositories, repository)
	}
	for _, s := range standIns {
		if !slices.Contains(repositories, s.repository) {
			t.Errorf("no file names %s: got %v", s.repository, repositories)
		}
	}
	if len(repositories) != len(standIns) {
		t.Errorf("got images %v, stand-ins for %d", names, len(standIns))
	}
}
