package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
)

func newLogsCmd(a *app) *cobra.Command {
	var follow, stamps bool
	var tail, since, until string
	cmd := &cobra.Command{
		Use:   "logs [flags] NAME",
		Short: "Show what a container wrote",
		Long: `Shows a container's output, standard error on standard error. The output is shown as
it is, also what controls a terminal: it is the container's.`,
		Example: `  bulkhead logs -f --tail 20 web
  bulkhead logs --since 10m -t web`,
		Args:              needArgs(1, 1, "container"),
		ValidArgsFunction: a.completeFirst(a.completeContainers(nil)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := logOptions(tail, since, until, a.Now())
			if err != nil {
				return err
			}
			o.Follow = follow
			c, err := a.client()
			if err != nil {
				return err
			}
			p := logPrinter{out: a.Stdout, err: a.Stderr, stamps: stamps, midLine: map[string]bool{}}
			return c.ContainerLogs(cmd.Context(), args[0], o, p.print)
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&follow, "follow", "f", false, "go on until the container ends")
	flags.BoolVarP(&stamps, "timestamps", "t", false, "put the time before each line")
	flags.StringVarP(&tail, "tail", "n", "all", "number of lines from the end, or all")
	flags.StringVar(&since, "since", "", "only what was written since a time, or within a duration like 10m")
	flags.StringVar(&until, "until", "", "only what was written until a time")
	return cmd
}

func logOptions(tail, since, until string, now time.Time) (api.LogOptions, error) {
	o := api.LogOptions{Tail: -1, Stdout: true, Stderr: true}
	if tail != "all" {
		n, err := strconv.Atoi(tail)
		if err != nil || n < 0 {
			return o, api.Errorf(api.KindInvalid, "--tail %q is not a number of lines", tail).Hint("use a number, or all")
		}
		o.Tail = n
	}
	var err error
	if o.Since, err = parseTime(since, now); err != nil {
		return o, err
	}
	o.Until, err = parseTime(until, now)
	return o, err
}

// logPrinter writes log lines where they belong.
type logPrinter struct {
	out, err io.Writer
	stamps   bool
	midLine  map[string]bool // by stream: the line began in an earlier part
}

func (p logPrinter) print(l api.LogLine) error {
	var b strings.Builder
	if p.stamps && !p.midLine[l.Stream] {
		b.WriteString(l.Time.UTC().Format("2006-01-02T15:04:05.000000000Z") + " ")
	}
	b.WriteString(l.Line)
	if !l.Partial {
		b.WriteByte('\n')
	}
	p.midLine[l.Stream] = l.Partial
	w := p.out
	if l.Stream == "stderr" {
		w = p.err
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	return nil
}
