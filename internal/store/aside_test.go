package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func spoil(t *testing.T, db *DB, key, text string) {
	t.Helper()
	if _, err := db.Update(func(tx *Tx) error {
		tx.wrote = true
		return tx.b.Bucket([]byte("rows")).Put([]byte(key), []byte(text))
	}); err != nil {
		t.Fatal(err)
	}
}

// read gives what a start finds: rows, and what is aside.
func read(t *testing.T, db *DB, refuse string) (got, aside []string) {
	t.Helper()
	list, err := rows.Read(db, func(k string, r row) error {
		if k == refuse {
			return errors.New("not today")
		}
		got = append(got, fmt.Sprint(k, "=", r.N))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if a.Table != "rows" || !strings.Contains(a.Err.Error(), "rows "+a.Key) {
			t.Errorf("%s %s: the error does not name it: %v", a.Table, a.Key, a.Err)
		}
		aside = append(aside, a.Key)
	}
	return got, aside
}

// TestAside: what cannot be read stands in nobody's way, survives, is not
// overwritten, and comes back when it can be read.
func TestAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := open(t, path)
	defer func() { _ = db.Close() }()
	put := func(k string, n int) {
		t.Helper()
		if _, err := db.Update(func(tx *Tx) error { return rows.Put(tx, k, row{n}) }); err != nil {
			t.Fatal(err)
		}
	}
	put("a", 1)
	put("b", 2)
	put("c", 3)
	spoil(t, db, "b", `{"N":`)
	steps := []struct {
		name       string
		do         func()
		refuse     string
		got, aside []string
	}{
		{"one is spoilt", func() {}, "", []string{"a=1", "c=3"}, []string{"b"}},
		{"the next start", func() {}, "", []string{"a=1", "c=3"}, []string{"b"}},
		{"another takes the key", func() { put("b", 7) }, "", []string{"a=1", "b=7", "c=3"}, []string{"b"}},
		{"the reader refuses one", func() {}, "c", []string{"a=1", "b=7"}, []string{"c", "b"}},
		{"and takes it again", func() {}, "", []string{"a=1", "b=7", "c=3"}, []string{"b"}},
		{"it is forgotten", func() {
			if _, err := db.Update(func(tx *Tx) error { return errors.Join(rows.Forget(tx, "b"), rows.Forget(tx, "none")) }); err != nil {
				t.Fatal(err)
			}
		}, "", []string{"a=1", "b=7", "c=3"}, nil},
	}
	for _, s := range steps {
		s.do()
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = open(t, path)
		got, aside := read(t, db, s.refuse)
		if d := cmp.Diff(s.got, got) + cmp.Diff(s.aside, aside); d != "" {
			t.Errorf("%s: %s", s.name, d)
		}
	}
	rev, err := db.Revision()
	if err != nil {
		t.Fatal(err)
	}
	read(t, db, "")
	if now, _ := db.Revision(); now != rev {
		t.Error("a start that finds nothing new wrote")
	}
}
