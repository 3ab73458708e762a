// Answers ignore cases with moby/patternmatcher, the matcher behind BuildKit's file sync.
//
//	go run . < cases.json > expected.jsonl
//
// Every path is matched against every ignore file. The answer lists the paths that match by themselves,
// and those that match in a walk that passes each directory's result to its children. For a rejected
// ignore file it has the line of the error.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

type questions struct {
	Paths []string `json:"paths"`
	Files []string `json:"files"`
}

type answer struct {
	File  string   `json:"file"`
	Error bool     `json:"error,omitempty"`
	Line  int      `json:"line,omitempty"`
	Alone []string `json:"alone,omitempty"`
	Walk  []string `json:"walk,omitempty"`
}

func main() {
	var asked questions
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		log.Fatal(err)
	}
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	for _, file := range asked.Files {
		alone, walk, err := ask(file, asked.Paths)
		line := 0
		if err != nil {
			line = firstBadLine(file, asked.Paths)
		}
		if err := out.Encode(answer{file, err != nil, line, alone, walk}); err != nil {
			log.Fatal(err)
		}
	}
}

// Finds the line, from 1, at which a file is rejected: the matcher's errors do not contain it.
func firstBadLine(file string, paths []string) int {
	lines := strings.SplitAfter(file, "\n")
	for count := range lines {
		if _, _, err := ask(strings.Join(lines[:count+1], ""), paths); err != nil {
			return count + 1
		}
	}
	return 0
}

func ask(file string, paths []string) (alone, walk []string, err error) {
	patterns, err := ignorefile.ReadAll(strings.NewReader(file))
	if err != nil {
		return nil, nil, err
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, nil, err
	}
	for _, path := range paths {
		matched, err := matcher.MatchesOrParentMatches(path)
		if err != nil {
			return nil, nil, err
		}
		if matched {
			alone = append(alone, path)
		}
		var info patternmatcher.MatchInfo
		for at, c := range path + "/" {
			if c != '/' {
				continue
			}
			if matched, info, err = matcher.MatchesUsingParentResults(path[:at], info); err != nil {
				return nil, nil, err
			}
		}
		if matched {
			walk = append(walk, path)
		}
	}
	return alone, walk, nil
}
