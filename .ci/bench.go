// Command bench runs the benchmarks that stand behind vizpeer's promises, prints
// one table and writes bench.json. It exits 1 if a promise is missed.
//
// A benchmark measures both sides of a comparison beside each other and reports
// their medians' ingredients as metrics ("import-s", "sha256-s"); run several times
// it gives pairs, and a row of the table is the ratio of the medians. What a
// machine does meanwhile disturbs both sides alike.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// promise is a row of the table: the median of one metric, divided by that of
// another if there is one.
type promise struct {
	name      string
	pkg       string
	benchmark string
	of, by    string // metrics
	beside    string // metric that is only shown, or ""
	unit      string
	bar, aim  float64
	better    string // less, more
}

const mib = 1 << 20

var promises = []promise{
	{"farm_of_one_against_plain_blender", "./cmd/vizpeer", "FarmOfOne", "farm-s", "allowed-s", "", "of 1.15 × plain + 3 s", 1, 1, "less"},
	{"warm_40_frames", "./cmd/vizpeer", "FarmOfOne", "farm-s", "allowed-warm-s", "plain-s", "of 1.05 × plain + 2 s", 1, 0.95, "less"},
	{"warm_10_jobs", "./cmd/vizpeer", "OneFrameJobs", "farm-s", "plain-s", "", "of ten plain starts", 0.2, 0.15, "less"},
	{"still_split_over_two_peers", "./cmd/vizpeer", "SplitStill", "farm-s", "plain-s", "halves-s", "of one plain Blender's time", 0.6, 0.55, "less"},
	{"import_against_sha256", "./blobs", "ImportOneGiB", "sha256-s", "import-s", "disk-s", "× sha256's speed", 0.5, 0.8, "more"},
	{"store_to_store_against_raw_stream", "./blobs/swarm", "StoreToStore", "raw-s", "fetch-s", "raw-to-disk-s", "× raw stream's speed", 0.6, 0.9, "more"},
	{"swarm_holder_sends", "./blobs/swarm", "Swarm", "holder-sent-B", "file-B", "", "× the file", 1.8, 1.2, "less"},
	{"swarm_time_until_all_have_it", "./blobs/swarm", "Swarm", "swarm-s", "one-uplink-s", "", "× one upload", 2, 1.3, "less"},
	{"changed_1_percent_against_rsync", "./blobs", "Resubmit", "changed-new-B", "changed-rsync-B", "", "× rsync's literal data", 2.2, 1.5, "less"},
	{"inserted_1000_bytes_in_front", "./blobs", "Resubmit", "inserted-new-B", "", "", "new bytes", 1 * mib, 128 << 10, "less"},
	{"blend_object_moved", "./blobs", "ResubmitBlend", "moved-new-B", "blend-B", "", "of the .blend is new", 0.05, 0.01, "less"},
	{"blend_reopened_and_object_moved", "./blobs", "ResubmitBlend", "reopened-new-B", "blend-B", "", "of the .blend is new", 0.05, 0.01, "less"},
	{"memory_importing_4_GiB", "./blobs", "ImportMemory", "peak-B", "", "", "bytes resident at most", 256 * mib, 128 * mib, "less"},
	{"placement_of_a_million_tasks_on_1000_machines_p99", "./coord/sched", "Place", "place-p99-ms", "", "place-p50-ms", "ms a grant", 1, 0.1, "less"},
	{"cost_per_task_with_a_million_queued_against_10000", "./coord/sched", "CostPerTask", "us-at-1e6", "us-at-1e4", "us-at-1e5", "× the cost", 1.5, 1.2, "less"},
	{"utilisation_of_a_simulated_week", "./coord/sched", "Week", "useful-h", "possible-h", "longest-wait-h", "of the best possible", 0.95, 0.97, "more"},
	{"grants_and_completions_of_one_coordinator", "./coord", "Leader", "grants+completions/s", "", "kept/s", "a second, each on disk", 2000, 4000, "more"},
	{"memory_with_a_million_tasks_queued", "./coord", "LargeQueue", "peak-B", "", "", "bytes resident at most", 1536 * mib, 512 * mib, "less"},
	{"snapshot_of_a_million_tasks", "./coord", "LargeQueue", "snapshot-s", "", "", "s", 5, 2, "less"},
	{"grants_wait_for_that_snapshot", "./coord", "LargeQueue", "stall-ms", "", "grant-ms", "ms longer than usual", 100, 20, "less"},
	{"next_grant", "./cmd/vizpeer", "NextGrant", "median-s", "", "worst-s", "s after the leader's death, the median of 20", 2, 1, "less"},
	{"next_grant_at_the_worst", "./cmd/vizpeer", "NextGrant", "worst-s", "", "median-s", "s after the leader's death, the worst of 20", 5, 2, "less"},
	{"submit_10000_tasks_over_http", "./peer", "Submit", "submit-ms", "", "", "ms", 100, 20, "less"},
	{"four_workers_tasks", "./peer", "Workers", "rendered/s", "", "done/s", "tasks a second", 300, 400, "more"},
	{"four_workers_idle_between_two_tasks", "./peer", "Workers", "gap-ms", "", "cpu-ms/task", "ms, the median", 5, 3, "less"},
	{"previews_cost", "./peer/render", "Previews", "parts-cpu-s", "plain-cpu-s", "previews", "× a plain frame's CPU time", 1.08, 1.04, "less"},
	{"first_preview", "./peer/render", "Previews", "preview-s", "plain-s", "pieces", "of a plain frame's time", 0.05, 0.03, "less"},
	{"memory_fetching_4_GiB", "./blobs/swarm", "FetchMemory", "peak-B", "", "", "bytes resident at most", 256 * mib, 128 * mib, "less"},
}

// row is one entry of bench.json.
type row struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Bar    float64 `json:"bar"`
	Aim    float64 `json:"aim"`
	Better string  `json:"better"`
	Detail string  `json:"detail"`
}

func main() {
	count := flag.Int("count", 5, "pairs to measure")
	only := flag.String("only", ".", "regular expression for the names of the rows wanted")
	flag.Parse()
	wanted, err := regexp.Compile(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	chosen := slices.DeleteFunc(slices.Clone(promises), func(p promise) bool { return !wanted.MatchString(p.name) })
	var rows []row
	missed := false
	measured := map[string]map[string][]float64{}
	for _, p := range chosen {
		if measured[p.benchmark] == nil {
			fmt.Fprintf(os.Stderr, "measuring %s, %d times …\n", p.benchmark, *count)
			if measured[p.benchmark], err = run(p, *count); err != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n", p.name, err)
				missed = true
				continue
			}
		}
		r, err := judge(p, measured[p.benchmark])
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", p.name, err)
			missed = true
			continue
		}
		rows = append(rows, r)
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "NAME\tVALUE\tUNIT\tBAR\tAIM\t\tDETAIL")
	for _, r := range rows {
		verdict := "missed"
		switch {
		case meets(r, r.Aim):
			verdict = "aim met"
		case meets(r, r.Bar):
			verdict = "bar met"
		default:
			missed = true
		}
		fmt.Fprintf(out, "%s\t%.4g\t%s\t%.4g\t%.4g\t%s\t%s\n", r.Name, r.Value, r.Unit, r.Bar, r.Aim, verdict, r.Detail)
	}
	out.Flush()
	text, err := json.MarshalIndent(rows, "", "\t")
	if err == nil {
		err = os.WriteFile("bench.json", append(text, '\n'), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if missed || err != nil {
		os.Exit(1)
	}
}

func meets(r row, bound float64) bool {
	return r.Better == "less" && r.Value <= bound || r.Better == "more" && r.Value >= bound
}

// run measures a benchmark and returns each metric's values, one a run.
func run(p promise, count int) (map[string][]float64, error) {
	cmd := exec.Command("go", "test", "-run", "^$", "-bench", "^Benchmark"+p.benchmark+"$", "-benchtime", "1x",
		"-count", strconv.Itoa(count), "-timeout", "60m", p.pkg)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	metrics := map[string][]float64{}
	var said []string
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		said = append(said, lines.Text())
		// BenchmarkName-2  1  123 ns/op  4.5 import-s …
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		for i := 2; i+1 < len(fields); i += 2 {
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				metrics[fields[i+1]] = append(metrics[fields[i+1]], v)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, strings.Join(said, "\n"))
	}
	return metrics, lines.Err()
}

func judge(p promise, metrics map[string][]float64) (row, error) {
	r := row{Name: p.name, Unit: p.unit, Bar: p.bar, Aim: p.aim, Better: p.better}
	for _, m := range []string{p.of, p.by, p.beside} {
		if m != "" && len(metrics[m]) == 0 {
			return r, fmt.Errorf("the benchmark %s did not report %q", p.benchmark, m)
		}
	}
	r.Value = median(metrics[p.of])
	r.Detail = fmt.Sprintf("%s %s", p.of, spread(metrics[p.of]))
	if p.by != "" {
		r.Value /= median(metrics[p.by])
		r.Detail += fmt.Sprintf(", %s %s", p.by, spread(metrics[p.by]))
	}
	if p.beside != "" {
		r.Detail += fmt.Sprintf(", beside %s %s", p.beside, spread(metrics[p.beside]))
	}
	return r, nil
}

// spread shows a median with the least and the most beside it.
func spread(list []float64) string {
	return fmt.Sprintf("%.4g (%.4g–%.4g)", median(list), slices.Min(list), slices.Max(list))
}

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}
