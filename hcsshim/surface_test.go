package hcsshim_test

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// windows and hnslib are checkouts, from which the lists are made anew.
var (
	windows = flag.String("windows", "", "checkout of the Windows client to make testdata/version*.txt from")
	hnslib  = flag.String("hnslib", "", "checkout of the client for networks alone, hnslib, to make testdata/hnslib.txt from")
)

// TestSurface: what the Windows client exports, and what hnslib does besides, which testdata lists, is here with the same signatures and members. Lines that begin with a
// minus are not, and are no oversight; a line of that kind that is here after all is to lose it.
func TestSurface(t *testing.T) {
	for version, of := range map[string]struct {
		dir    string
		from   string
		theirs []string
		beside string
	}{
		"version1": {".", *windows, []string{"hns*.go", "errors.go"}, ""},
		"version2": {"hcn", *windows, []string{"hcn/*.go"}, ""},
		"hnslib":   {"hcn", *hnslib, []string{"hcn/*.go"}, "version2"},
	} {
		t.Run(version, func(t *testing.T) {
			ours := surface(t, []string{filepath.Join(of.dir, "*.go")}, "")
			list := filepath.Join("testdata", version+".txt")
			if of.from != "" {
				remember(t, list, of.beside, surface(t, inside(of.from, of.theirs), filepath.Join(of.from, "internal", "hns")), ours)
			}
			b, err := os.ReadFile(list)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(b)) {
				line = strings.TrimSpace(line)
				absent, isAbsent := strings.CutPrefix(line, "- ")
				_, is := slices.BinarySearch(ours, absent)
				switch {
				case !is && !isAbsent:
					t.Errorf("not here: %s", line)
				case is && isAbsent:
					t.Errorf("here, and listed as not: %s", line)
				}
			}
		})
	}
}

func inside(dir string, patterns []string) (out []string) {
	for _, p := range patterns {
		out = append(out, filepath.Join(dir, p))
	}
	return out
}

func remember(t *testing.T, file, beside string, theirs, ours []string) {
	t.Helper()
	var b bytes.Buffer
	var listed []byte
	if beside != "" {
		var err error
		if listed, err = os.ReadFile(filepath.Join("testdata", beside+".txt")); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range theirs {
		if strings.Contains("\n"+string(listed), "\n"+line+"\n") || strings.Contains("\n"+string(listed), "\n- "+line+"\n") {
			continue
		}
		if _, is := slices.BinarySearch(ours, line); !is {
			b.WriteString("- ")
		}
		b.WriteString(line + "\n")
	}
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// surface lists what files export, sorted. Names that stand for those of the package in the directory below are these.
func surface(t *testing.T, patterns []string, below string) []string {
	t.Helper()
	r := &reader{t: t, fset: token.NewFileSet(), types: map[string]*ast.TypeSpec{}, methods: map[string][]*ast.FuncDecl{}}
	if below != "" {
		r.inner = &reader{t: t, fset: r.fset, types: map[string]*ast.TypeSpec{}, methods: map[string][]*ast.FuncDecl{}}
		r.inner.read(filepath.Join(below, "*.go"))
	}
	for _, p := range patterns {
		r.read(p)
	}
	for name, spec := range r.types {
		r.typeLines(name, spec)
	}
	slices.Sort(r.lines)
	return slices.Compact(r.lines)
}

type reader struct {
	t       *testing.T
	fset    *token.FileSet
	types   map[string]*ast.TypeSpec
	methods map[string][]*ast.FuncDecl
	inner   *reader
	lines   []string
}

func (r *reader) read(pattern string) {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		r.t.Fatalf("%s: no files, %v", pattern, err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(r.fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, d := range f.Decls {
			r.declaration(d)
		}
	}
}

func (r *reader) declaration(d ast.Decl) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		switch {
		case !d.Name.IsExported():
		case d.Recv == nil:
			r.lines = append(r.lines, "func "+d.Name.Name+r.signature(d.Type))
		default:
			base := strings.TrimPrefix(r.text(d.Recv.List[0].Type), "*")
			r.methods[base] = append(r.methods[base], d)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() {
					r.types[s.Name.Name] = s
				}
			case *ast.ValueSpec: // a constant of theirs may be a variable of ours: both are used in the same way
				for _, n := range s.Names {
					if n.IsExported() {
						r.lines = append(r.lines, "value "+n.Name)
					}
				}
			}
		}
	}
}

func (r *reader) typeLines(name string, spec *ast.TypeSpec) {
	from, methods := spec.Type, r.methods[name]
	if s, ok := from.(*ast.SelectorExpr); ok && r.inner != nil && r.inner.types[s.Sel.Name] != nil {
		from, methods = r.inner.types[s.Sel.Name].Type, r.inner.methods[s.Sel.Name]
	}
	st, ok := from.(*ast.StructType)
	if !ok {
		r.lines = append(r.lines, "type "+name+" "+r.text(from))
	} else {
		r.lines = append(r.lines, "type "+name+" struct")
		for _, f := range st.Fields.List {
			r.fieldLines(name, f)
		}
	}
	for _, m := range methods {
		star := ""
		if _, ok := m.Recv.List[0].Type.(*ast.StarExpr); ok {
			star = "*"
		}
		r.lines = append(r.lines, fmt.Sprintf("method (%s%s) %s%s", star, name, m.Name.Name, r.signature(m.Type)))
	}
}

// fieldLines names the members of a struct as JSON has them.
func (r *reader) fieldLines(of string, f *ast.Field) {
	tag := ""
	if f.Tag != nil {
		text, err := strconv.Unquote(f.Tag.Value)
		if err != nil {
			r.t.Fatal(err)
		}
		tag, _, _ = strings.Cut(reflect.StructTag(text).Get("json"), ",")
	}
	if len(f.Names) == 0 {
		r.lines = append(r.lines, "member "+of+" embeds "+r.text(f.Type))
	}
	for _, n := range f.Names {
		if !n.IsExported() {
			continue
		}
		line := "member " + of + "." + n.Name + " " + r.text(f.Type)
		if tag != "" && tag != n.Name {
			line += " as " + tag
		}
		r.lines = append(r.lines, line)
	}
}

func (r *reader) signature(f *ast.FuncType) string {
	list := func(fields *ast.FieldList) (out []string) {
		if fields == nil {
			return nil
		}
		for _, p := range fields.List {
			for range max(1, len(p.Names)) {
				out = append(out, r.text(p.Type))
			}
		}
		return out
	}
	return "(" + strings.Join(list(f.Params), ", ") + ") (" + strings.Join(list(f.Results), ", ") + ")"
}

func (r *reader) text(e ast.Expr) string {
	var b bytes.Buffer
	if err := printer.Fprint(&b, r.fset, e); err != nil {
		r.t.Fatal(err)
	}
	return strings.NewReplacer("hns.", "", "interface{}", "any").Replace(b.String())
}
