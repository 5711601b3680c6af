package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

// style is how a cell looks on a terminal with colours.
type style string

// The styles.
const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
	cyan   style = "36"
)

// cell is a text of a table with a style.
type cell struct {
	text  string
	style style
}

// table aligns columns. Cells are strings or cells; both pass clean.
type table struct {
	head []string
	rows [][]cell
}

func newTable(head ...string) *table { return &table{head: head} }

func (t *table) row(cells ...any) {
	row := make([]cell, len(cells))
	for i, c := range cells {
		switch c := c.(type) {
		case cell:
			row[i] = cell{clean(c.text), c.style}
		default:
			row[i] = cell{text: clean(fmt.Sprint(c))}
		}
	}
	t.rows = append(t.rows, row)
}

// write prints the table; without rows the heading alone says that there is nothing.
func (t *table) write(w io.Writer, colour bool) error {
	head := make([]cell, len(t.head))
	for i, h := range t.head {
		head[i] = cell{h, bold}
	}
	rows := append([][]cell{head}, t.rows...)
	widths := make([]int, len(t.head))
	for _, row := range rows {
		for i, c := range row {
			widths[i] = max(widths[i], width(c.text))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		for i, c := range row {
			text := c.text
			if i < len(row)-1 {
				text = pad(text, widths[i]+3)
			}
			b.WriteString(paint(text, c.style, colour))
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// paint colours a text but not the blanks after it.
func paint(s string, st style, colour bool) string {
	text := strings.TrimRight(s, " ")
	if !colour || st == plain || text == "" {
		return s
	}
	return "\x1b[" + string(st) + "m" + text + "\x1b[0m" + s[len(text):]
}

// colour tells whether output may have colours: on a terminal where nobody said no.
func (a *app) colour() bool {
	if a.noColor || a.env("NO_COLOR") != "" || a.env("TERM") == "dumb" {
		return false
	}
	_, ok := terminal(a.Stdout)
	return ok
}

// The forms of output.
const (
	outputTable = "table"
	outputJSON  = "json"
	outputName  = "name"
)

// outputFlag adds -o to a command.
func outputFlag(cmd *cobra.Command, fallback string) *string {
	form := cmd.Flags().StringP("output", "o", fallback, "form of the output: table, json or name")
	complete(cmd, "output", outputTable, outputJSON, outputName)
	return form
}

func checkOutput(form string) error {
	switch form {
	case outputTable, outputJSON, outputName:
		return nil
	}
	return api.Errorf(api.KindInvalid, "--output %q is not known", form).Hint("use table, json or name")
}

// shows makes a command ask the daemon, and show what it says in the form that was asked for.
func (a *app) shows(cmd *cobra.Command, run func(c *client.Client, form string, args []string) error) {
	form := outputFlag(cmd, outputTable)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if err := checkOutput(*form); err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		return run(c, *form, args)
	}
}

// listing is what a listing command shows, in the form that was asked for.
type listing[T any] struct {
	items []T
	name  func(T) string
	head  []string
	row   func(T) []any
}

func show[T any](a *app, form string, l listing[T]) error {
	switch form {
	case outputJSON:
		if l.items == nil {
			l.items = []T{}
		}
		return writeJSON(a.Stdout, l.items)
	case outputName:
		for _, item := range l.items {
			if _, err := fmt.Fprintln(a.Stdout, clean(l.name(item))); err != nil {
				return err
			}
		}
		return nil
	}
	t := newTable(l.head...)
	for _, item := range l.items {
		t.row(l.row(item)...)
	}
	return t.write(a.Stdout, a.colour())
}

// writeJSON prints a document for people and programs. JSON itself escapes only
// the control characters of ASCII; the rest of what could disturb a terminal can
// only stand in strings, so it is escaped as text.
func writeJSON(w io.Writer, v any) error {
	var text strings.Builder
	enc := json.NewEncoder(&text)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	var b strings.Builder
	for _, r := range text.String() {
		switch {
		case r == '\n' || !unsafeRune(r):
			b.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
