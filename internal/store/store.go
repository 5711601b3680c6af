// Package store keeps this host's state in bbolt: one typed table per kind, one
// revision counter over all of them.
//
// bbolt syncs every commit: once Update returned, the rows survive a power cut,
// and whatever cuts an operation short, the next run of the loop knows what was
// wanted.
package store

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Schema is the version of the layout that this build writes. Open upgrades an
// older one and refuses a newer one: an old daemon must not rewrite rows that it
// does not understand.
const Schema = 1

var (
	metaBucket  = []byte("meta")
	schemaKey   = []byte("schema")
	revisionKey = []byte("revision")
)

// ErrNewer is returned by Open for a file that a later version wrote.
var ErrNewer = errors.New("the state was written by a later version")

// upgrades holds, for each schema version, what makes the next one of it.
var upgrades = map[uint64]func(*bbolt.Tx) error{}

// DB is an open state file. It has one writer process, enforced by a file lock.
type DB struct {
	b *bbolt.DB
}

// Open opens or creates the state file. It waits at most a second for another
// process that has it.
func Open(path string) (*DB, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	if err := check(path); err != nil {
		return nil, openError(path, err)
	}
	b, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType, NoFreelistSync: true})
	if err != nil {
		return nil, openError(path, err)
	}
	if err := b.Update(upgrade); err != nil {
		_ = b.Close()
		return nil, openError(path, err)
	}
	return &DB{b}, nil
}

func openError(path string, err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("open state %s: another daemon is using it", path)
	case errors.Is(err, ErrDamaged):
		return fmt.Errorf("open state %s: %w: put a copy of it back, or move it away to begin anew", path, err)
	}
	if pathError, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("open state %s: %w: see that its directory can be written", path, pathError.Err)
	}
	return fmt.Errorf("open state %s: %w", path, err)
}

// ErrDamaged is returned by Open for a file that cannot be read to its end.
var ErrDamaged = errors.New("the file is damaged")

// check reads a file from end to end. bbolt takes damage for a mistake in the program: it panics, and when it opens a
// file to write, on a goroutine of its own, where nobody can recover.
func check(path string) (err error) {
	if fi, err := os.Stat(path); err != nil || !fi.Mode().IsRegular() || fi.Size() == 0 {
		return nil //nolint:nilerr // a file that is not there yet is made; what else is wrong with it, opening it says
	}
	// Damage may also point behind the end of the mapped file.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, r)
		}
	}()
	b, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, ReadOnly: true})
	switch {
	case errors.Is(err, berrors.ErrTimeout), errors.Is(err, os.ErrPermission):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return b.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(_ []byte, bucket *bbolt.Bucket) error { return walk(bucket) })
	})
}

func walk(b *bbolt.Bucket) error {
	return b.ForEach(func(k, v []byte) error {
		if v != nil {
			return nil
		}
		if inner := b.Bucket(k); inner != nil {
			return walk(inner)
		}
		return fmt.Errorf("%w: key %q is no bucket", ErrDamaged, k)
	})
}

func upgrade(tx *bbolt.Tx) error {
	meta, err := tx.CreateBucketIfNotExists(metaBucket)
	if err != nil {
		return fmt.Errorf("make the meta bucket: %w", err)
	}
	version := uint64(Schema)
	if v := meta.Get(schemaKey); v != nil {
		version = binary.BigEndian.Uint64(v)
	}
	if version > Schema {
		return fmt.Errorf("%w: schema %d, this build knows %d; install that version again, or run `bulkhead reset`", ErrNewer, version, Schema)
	}
	for ; version < Schema; version++ {
		up, ok := upgrades[version]
		if !ok {
			return fmt.Errorf("no upgrade from schema %d", version)
		}
		if err := up(tx); err != nil {
			return fmt.Errorf("upgrade from schema %d: %w", version, err)
		}
	}
	return meta.Put(schemaKey, binary.BigEndian.AppendUint64(nil, Schema))
}

// Close closes the file.
func (d *DB) Close() error { return d.b.Close() }

// Tx is a transaction.
type Tx struct {
	b     *bbolt.Tx
	wrote bool
}

// View reads.
func (d *DB) View(fn func(*Tx) error) error {
	return d.b.View(func(b *bbolt.Tx) error { return fn(&Tx{b: b}) })
}

// Update writes, all or nothing, and returns the revision that the change made.
// A transaction that wrote nothing makes no revision.
func (d *DB) Update(fn func(*Tx) error) (uint64, error) {
	var rev uint64
	err := d.b.Update(func(b *bbolt.Tx) error {
		tx := &Tx{b: b}
		if err := fn(tx); err != nil {
			return err
		}
		meta := b.Bucket(metaBucket)
		rev = revision(meta)
		if !tx.wrote {
			return errNothing
		}
		rev++
		return meta.Put(revisionKey, binary.BigEndian.AppendUint64(nil, rev))
	})
	if errors.Is(err, errNothing) {
		return rev, nil
	}
	if err != nil {
		return 0, err
	}
	return rev, nil
}

// errNothing rolls back a transaction without changes, to save its sync.
var errNothing = errors.New("nothing written")

// Revision of the last change.
func (d *DB) Revision() (rev uint64, err error) {
	err = d.b.View(func(b *bbolt.Tx) error {
		rev = revision(b.Bucket(metaBucket))
		return nil
	})
	return rev, err
}

func revision(meta *bbolt.Bucket) uint64 {
	if v := meta.Get(revisionKey); len(v) == 8 {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// Table is a kind of row, kept as JSON under a key.
type Table[T any] struct{ name string }

// NewTable names a table. Two tables with one name are the same table.
func NewTable[T any](name string) Table[T] { return Table[T]{name} }

// Put writes a row.
func (t Table[T]) Put(tx *Tx, key string, row T) error {
	v, err := json.Marshal(row)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", t.name, key, err)
	}
	b, err := tx.b.CreateBucketIfNotExists([]byte(t.name))
	if err != nil {
		return fmt.Errorf("write %s %s: %w", t.name, key, err)
	}
	if err := b.Put([]byte(key), v); err != nil {
		return fmt.Errorf("write %s %s: %w", t.name, key, err)
	}
	tx.wrote = true
	return nil
}

// Delete drops a row; one that is absent is no error.
func (t Table[T]) Delete(tx *Tx, key string) error {
	b := tx.b.Bucket([]byte(t.name))
	if b == nil || b.Get([]byte(key)) == nil {
		return nil
	}
	if err := b.Delete([]byte(key)); err != nil {
		return fmt.Errorf("delete %s %s: %w", t.name, key, err)
	}
	tx.wrote = true
	return nil
}

// Each calls fn with every row, in key order, until it returns an error.
func (t Table[T]) Each(tx *Tx, fn func(key string, row T) error) error {
	b := tx.b.Bucket([]byte(t.name))
	if b == nil {
		return nil
	}
	return b.ForEach(func(k, v []byte) error {
		var row T
		if err := json.Unmarshal(v, &row); err != nil {
			return fmt.Errorf("read %s %s: %w", t.name, k, err)
		}
		return fn(string(k), row)
	})
}
