package cli

import (
	"io"
	"strings"

	"github.com/mattn/go-runewidth"
)

// lines are the characters that pictures are drawn with.
type lines struct {
	h, v                    rune
	topLeft, topRight       rune
	bottomLeft, bottomRight rune
	right, left             rune // a line that leaves to the right, to the left
	down, up                rune
	arrow, dot              string
}

func unicodeLines() lines {
	return lines{
		h: '─', v: '│', topLeft: '┌', topRight: '┐', bottomLeft: '└', bottomRight: '┘',
		right: '├', left: '┤', down: '┬', up: '┴', arrow: "→", dot: "·",
	}
}

func asciiLines() lines {
	return lines{
		h: '-', v: '|', topLeft: '+', topRight: '+', bottomLeft: '+', bottomRight: '+',
		right: '+', left: '+', down: '+', up: '+', arrow: "->", dot: "-",
	}
}

// glyph is a character of a canvas; 0 is the right half of a wide one.
type glyph struct {
	r     rune
	style style
}

// canvas is a picture of characters that grows downwards.
type canvas struct {
	width int
	rows  [][]glyph
	lines lines
}

func newCanvas(width int, l lines) *canvas { return &canvas{width: width, lines: l} }

// set puts one character; what lies outside is dropped.
func (c *canvas) set(x, y int, r rune, st style) {
	if x < 0 || x >= c.width || y < 0 {
		return
	}
	for len(c.rows) <= y {
		row := make([]glyph, c.width)
		for i := range row {
			row[i].r = ' '
		}
		c.rows = append(c.rows, row)
	}
	c.rows[y][x] = glyph{r, st}
}

// text puts a text of at most room columns and gives the column after it.
func (c *canvas) text(x, y, room int, s string, st style) int {
	s = clean(s)
	if width(s) > room {
		tail := "…"
		if c.lines.arrow == "->" {
			tail = "~"
		}
		s = runewidth.Truncate(s, max(room, 0), tail)
	}
	for _, r := range s {
		w := runewidth.RuneWidth(r)
		if w == 0 {
			continue
		}
		c.set(x, y, r, st)
		if w == 2 {
			c.set(x+1, y, 0, st)
		}
		x += w
	}
	return x
}

func (c *canvas) horizontal(x1, x2, y int) {
	for x := x1; x <= x2; x++ {
		c.set(x, y, c.lines.h, plain)
	}
}

func (c *canvas) vertical(x, y1, y2 int) {
	for y := y1; y <= y2; y++ {
		c.set(x, y, c.lines.v, plain)
	}
}

// box draws a frame with a title in its upper edge.
func (c *canvas) box(x1, y1, x2, y2 int, title noteRow) {
	l := c.lines
	c.horizontal(x1, x2, y1)
	c.horizontal(x1, x2, y2)
	c.vertical(x1, y1, y2)
	c.vertical(x2, y1, y2)
	c.set(x1, y1, l.topLeft, plain)
	c.set(x2, y1, l.topRight, plain)
	c.set(x1, y2, l.bottomLeft, plain)
	c.set(x2, y2, l.bottomRight, plain)
	if len(title) > 0 && x2-x1 > 8 {
		c.set(x1+4, y1, ' ', plain)
		end := drawRow(c, x1+5, y1, x2-x1-7, title)
		c.set(end, y1, ' ', plain)
	}
}

// write prints the picture without blanks at the ends of lines.
func (c *canvas) write(w io.Writer, colour bool) error {
	var b strings.Builder
	for _, row := range c.rows {
		end := len(row)
		for end > 0 && row[end-1].r == ' ' {
			end--
		}
		for i := 0; i < end; {
			st, from := row[i].style, i
			var run strings.Builder
			for ; i < end && row[i].style == st; i++ {
				if row[i].r != 0 {
					run.WriteRune(row[i].r)
				}
			}
			if colour && st != plain && i > from {
				b.WriteString("\x1b[" + string(st) + "m" + run.String() + "\x1b[0m")
			} else {
				b.WriteString(run.String())
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}
