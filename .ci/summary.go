// Command summary reads the output of `go test -json` on standard input and
// prints what a person wants of it: a line for each package, the whole output of
// what failed, what tests say as attributes, each skipped test with its reason, and
// the totals. It exits 1 if anything failed or nothing ran.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of a build's output
	Test        string
	Output      string
	Elapsed     float64
	FailedBuild string
	Key, Value  string // of an attribute of a test
}

type test struct{ pkg, name string }

func main() {
	var (
		passed, failed, skipped int
		output                  = map[test][]string{}
		build                   = map[string][]string{}
		skips, failures         []test
		brokenPackages          int
	)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text()) // not from a test: the go command itself speaks
			continue
		}
		t := test{e.Package, e.Test}
		switch e.Action {
		case "output":
			output[t] = append(output[t], e.Output)
		case "attr": // what a test says that passes, too
			fmt.Printf("      %s %s: %s\n", e.Test, e.Key, e.Value)
		case "build-output":
			build[e.ImportPath] = append(build[e.ImportPath], e.Output)
		case "pass", "fail", "skip":
			if e.Test == "" {
				word := map[string]string{"pass": "ok  ", "fail": "FAIL", "skip": "none"}[e.Action]
				fmt.Printf("%s  %-28s %6.1f s\n", word, e.Package, e.Elapsed)
				if e.Action == "fail" {
					brokenPackages++
					fmt.Print(strings.Join(build[e.FailedBuild], ""))
				}
				continue
			}
			switch e.Action {
			case "pass":
				passed++
			case "fail":
				failed++
				failures = append(failures, t)
			case "skip":
				skipped++
				skips = append(skips, t)
			}
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, "summary: the tests' output could not be read:", err)
		os.Exit(1)
	}
	for _, t := range failures {
		fmt.Printf("\n--- FAIL %s %s\n%s", t.pkg, t.name, strings.Join(output[t], ""))
	}
	if brokenPackages > 0 && failed == 0 {
		for t, text := range output {
			if t.name == "" {
				fmt.Printf("\n--- %s\n%s", t.pkg, strings.Join(text, ""))
			}
		}
	}
	for _, t := range skips {
		fmt.Printf("skipped  %s %s: %s\n", t.pkg, t.name, reason(output[t]))
	}
	fmt.Printf("\n%d tests passed, %d failed, %d skipped, %d packages failed\n", passed, failed, skipped, brokenPackages)
	if failed > 0 || brokenPackages > 0 || passed == 0 {
		os.Exit(1)
	}
}

// reason is what a skipped test said.
func reason(output []string) string {
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			return line
		}
	}
	return "no reason given"
}
