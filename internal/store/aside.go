package store

import (
	"encoding/json"
	"fmt"

	"go.etcd.io/bbolt"
)

// A row that cannot be read must not keep the others from being used, and must not
// be lost either: another version may read it. So it is set aside, in a bucket of
// its own, where no later row of the same key overwrites it. Each start looks at it
// again.

// asideBucket holds, by table, the rows that were set aside.
var asideBucket = []byte("aside")

// Aside is a row that was set aside.
type Aside struct {
	Table, Key string
	Err        error // why
}

// Read calls fn with every row, in key order. A row that cannot be read, or that fn
// refuses with an error, is set aside; one that was set aside before and can be
// read now is a row again, unless its key has been taken since. It returns what is
// aside.
func (t Table[T]) Read(db *DB, fn func(key string, row T) error) ([]Aside, error) {
	var aside []Aside
	var out, back []string
	try := func(k, v []byte) error {
		var row T
		if err := json.Unmarshal(v, &row); err != nil {
			return err
		}
		return fn(string(k), row)
	}
	set := func(k []byte, err error) {
		aside = append(aside, Aside{t.name, string(k), fmt.Errorf("read %s %s: %w", t.name, k, err)})
	}
	err := db.View(func(tx *Tx) error {
		rows := tx.b.Bucket([]byte(t.name))
		if rows != nil {
			_ = rows.ForEach(func(k, v []byte) error {
				if err := try(k, v); err != nil {
					out = append(out, string(k))
					set(k, err)
				}
				return nil
			})
		}
		former := t.aside(tx.b)
		if former == nil {
			return nil
		}
		return former.ForEach(func(k, v []byte) error {
			if rows != nil && rows.Get(k) != nil {
				set(k, errTaken)
			} else if err := try(k, v); err != nil {
				set(k, err)
			} else {
				back = append(back, string(k))
			}
			return nil
		})
	})
	if err != nil || len(out)+len(back) == 0 {
		return aside, err
	}
	_, err = db.Update(func(tx *Tx) error {
		tx.wrote = true
		return t.move(tx.b, out, back)
	})
	if err != nil {
		return aside, fmt.Errorf("set rows of %s aside: %w", t.name, err)
	}
	return aside, nil
}

var errTaken = fmt.Errorf("there is another of this name by now")

func (t Table[T]) aside(tx *bbolt.Tx) *bbolt.Bucket {
	if all := tx.Bucket(asideBucket); all != nil {
		return all.Bucket([]byte(t.name))
	}
	return nil
}

func (t Table[T]) move(tx *bbolt.Tx, out, back []string) error {
	all, err := tx.CreateBucketIfNotExists(asideBucket)
	if err != nil {
		return err
	}
	aside, err := all.CreateBucketIfNotExists([]byte(t.name))
	if err != nil {
		return err
	}
	rows, err := tx.CreateBucketIfNotExists([]byte(t.name))
	if err != nil {
		return err
	}
	for _, k := range out {
		if err := shift(rows, aside, []byte(k)); err != nil {
			return err
		}
	}
	for _, k := range back {
		if err := shift(aside, rows, []byte(k)); err != nil {
			return err
		}
	}
	return nil
}

// shift moves one row. What a bucket gives is good only until it is changed.
func shift(from, to *bbolt.Bucket, key []byte) error {
	v := append([]byte(nil), from.Get(key)...)
	if err := to.Put(key, v); err != nil {
		return err
	}
	return from.Delete(key)
}

// Forget drops a row that is aside; one that is not there is no error.
func (t Table[T]) Forget(tx *Tx, key string) error {
	aside := t.aside(tx.b)
	if aside == nil || aside.Get([]byte(key)) == nil {
		return nil
	}
	tx.wrote = true
	if err := aside.Delete([]byte(key)); err != nil {
		return fmt.Errorf("forget %s %s: %w", t.name, key, err)
	}
	return nil
}
