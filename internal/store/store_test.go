package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"pgregory.net/rapid"
)

type row struct{ N int }

var rows = NewTable[row]("rows")

func open(t testing.TB, path string) *DB {
	t.Helper()
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func all(t testing.TB, db *DB) map[string]row {
	t.Helper()
	got := map[string]row{}
	if err := db.View(func(tx *Tx) error {
		return rows.Each(tx, func(k string, r row) error { got[k] = r; return nil })
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

// TestAgainstMap runs random transactions, failing ones and reopens among them,
// beside a plain map.
func TestAgainstMap(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		path := filepath.Join(dir, fmt.Sprint(n))
		db := open(t, path)
		defer func() { _ = db.Close() }()
		model := map[string]row{}
		rev := uint64(0)
		errAbort := errors.New("abort")
		for range rapid.IntRange(1, 8).Draw(rt, "transactions") {
			next := map[string]row{}
			maps.Copy(next, model)
			abort := rapid.Bool().Draw(rt, "abort")
			wrote := false
			got, err := db.Update(func(tx *Tx) error {
				for range rapid.IntRange(0, 4).Draw(rt, "writes") {
					k := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "key")
					if rapid.Bool().Draw(rt, "delete") {
						_, had := next[k]
						wrote = wrote || had
						delete(next, k)
						if err := rows.Delete(tx, k); err != nil {
							return err
						}
						continue
					}
					wrote = true
					next[k] = row{rapid.Int().Draw(rt, "value")}
					if err := rows.Put(tx, k, next[k]); err != nil {
						return err
					}
				}
				if abort {
					return errAbort
				}
				return nil
			})
			if abort {
				if !errors.Is(err, errAbort) {
					rt.Fatalf("aborted transaction: %v", err)
				}
			} else {
				if err != nil {
					rt.Fatal(err)
				}
				model = next
				if wrote {
					rev++
				}
				if got != rev {
					rt.Fatalf("revision %d, want %d", got, rev)
				}
			}
			if rapid.Bool().Draw(rt, "reopen") {
				if err := db.Close(); err != nil {
					rt.Fatal(err)
				}
				db = open(t, path)
			}
			if d := cmp.Diff(model, all(t, db)); d != "" {
				rt.Fatalf("rows (-model +store):\n%s", d)
			}
		}
	})
}

func TestSecondDaemonIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db := open(t, path)
	defer func() { _ = db.Close() }()
	if _, err := Open(path); err == nil {
		t.Fatal("two daemons opened one state file")
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db := open(t, path)
	if err := db.b.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(metaBucket).Put(schemaKey, binary.BigEndian.AppendUint64(nil, Schema+1))
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrNewer) {
		t.Fatalf("open of a newer schema: %v", err)
	}
}

func TestDamagedFileIsAnError(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good.db")
	db := open(t, good)
	_, err := db.Update(func(tx *Tx) error {
		for i := range 500 { // many pages
			if err := rows.Put(tx, fmt.Sprintf("%04d%s", i, strings.Repeat("x", 200)), row{i}); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	noise := make([]byte, 40*page)
	for i := range noise {
		noise[i] = byte(i*7 + i>>8)
	}
	for name, content := range map[string][]byte{
		"text":      []byte("this is no database, and is longer than a page header needs to be"),
		"cut":       whole[:page+100],
		"cut pages": whole[:len(whole)/2/page*page],
		"noise":     slices.Concat(whole[:2*page], noise, whole[min(len(whole), 42*page):]),
		"all noise": noise,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if db, err := Open(path); !errors.Is(err, ErrDamaged) {
				t.Fatalf("got %v and %v, want an error that says damaged", db, err)
			}
			if after, err := os.ReadFile(path); err != nil || !slices.Equal(after, content) {
				t.Fatalf("the file was changed (%v)", err)
			}
		})
	}
}
