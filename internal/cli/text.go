package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
)

// clean makes text of others safe to print on a line of a table: what could move
// the cursor, change colours or reorder the line is shown as an escape.
func clean(s string) string {
	if strings.IndexFunc(s, unsafeRune) < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if n == 1 && r == unicode.ReplacementChar {
			fmt.Fprintf(&b, `\x%02x`, s[i])
		} else if unsafeRune(r) {
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		} else {
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

// cleanLines is clean, but keeps line breaks and tabs: an error may have several
// lines.
func cleanLines(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i, l := range lines {
		lines[i] = clean(strings.ReplaceAll(l, "\t", "    "))
	}
	return strings.Join(lines, "\n")
}

// unsafeRune tells what does not stay in its cell. The replacement character is
// what invalid UTF-8 reads as.
func unsafeRune(r rune) bool {
	return r == unicode.ReplacementChar || !unicode.IsPrint(r)
}

// width is the number of columns that a text takes.
func width(s string) int { return runewidth.StringWidth(s) }

// cut shortens a text to columns, showing that it did.
func cut(s string, columns int) string {
	if width(s) <= columns {
		return s
	}
	return runewidth.Truncate(s, columns, "…")
}

// pad fills a text up with blanks.
func pad(s string, columns int) string {
	return s + strings.Repeat(" ", max(0, columns-width(s)))
}

// shortID is the part of an ID that people read: 12 characters, without the name
// of a digest's algorithm.
func shortID(id string) string {
	if _, hex, ok := strings.Cut(id, ":"); ok {
		id = hex
	}
	return id[:min(12, len(id))]
}

// ago is a duration as people say it, in its largest unit.
func ago(d time.Duration) string {
	switch {
	case d < time.Second:
		return "less than a second"
	case d < time.Minute:
		return plural(int(d.Seconds()), "second")
	case d < time.Hour:
		return plural(int(d.Minutes()), "minute")
	case d < 48*time.Hour:
		return plural(int(d.Hours()), "hour")
	case d < 14*24*time.Hour:
		return plural(int(d.Hours()/24), "day")
	case d < 60*24*time.Hour:
		return plural(int(d.Hours()/24/7), "week")
	case d < 2*365*24*time.Hour:
		return plural(int(d.Hours()/24/30), "month")
	default:
		return plural(int(d.Hours()/24/365), "year")
	}
}

func plural(n int, unit string) string {
	if n == 1 {
		return "1 " + unit
	}
	return fmt.Sprintf("%d %ss", n, unit)
}

// size is a number of bytes in powers of 1000, as registries and disks count.
func size(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	v := float64(n)
	i := 0
	for v >= 1000 && i < len(units)-1 {
		v /= 1000
		i++
	}
	return number(v) + units[i]
}

// binarySize is a number of bytes in powers of 1024, as memory is counted.
func binarySize(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	v := float64(n)
	i := 0
	for v >= 1024 && i < len(units)-1 {
		v /= 1024
		i++
	}
	return number(v) + units[i]
}

// number has three digits that count.
func number(v float64) string {
	return strconv.FormatFloat(v, 'g', 4, 64)
}
