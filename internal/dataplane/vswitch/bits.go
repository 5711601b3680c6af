package vswitch

import (
	"encoding/binary"
	"hash/fnv"
)

// vectorWords is how many words one piece of a vector has in the kernel (VECTOR_WORDS in
// bpf/lib/structs.h).
const vectorWords = 64

// bits is a vector with one bit for each rule of a list.
type bits []uint64

func newBits(rules int) bits { return make(bits, (rules+63)/64) }

func (b bits) set(i int) { b[i/64] |= 1 << (i % 64) }

func (b bits) add(o bits) {
	for i, w := range o {
		b[i] |= w
	}
}

func (b bits) clone() bits { return append(bits(nil), b...) }

func (b bits) empty() bool {
	for _, w := range b {
		if w != 0 {
			return false
		}
	}
	return true
}

func (b bits) equal(o bits) bool {
	if len(b) != len(o) {
		return false
	}
	for i, w := range b {
		if o[i] != w {
			return false
		}
	}
	return true
}

// hash is never 0, the number of the empty vector.
func (b bits) hash() uint32 {
	h := fnv.New64a()
	buf := make([]byte, 8*len(b))
	for i, w := range b {
		binary.LittleEndian.PutUint64(buf[8*i:], w)
	}
	h.Write(buf)
	return fold(h.Sum64())
}

func fold(sum uint64) uint32 {
	if n := uint32(sum) ^ uint32(sum>>32); n != 0 {
		return n
	}
	return 1
}

// pieces cuts a vector into what the map holds of it: only pieces that have a bit.
func (b bits) pieces() map[uint32]bpfVector {
	out := map[uint32]bpfVector{}
	for i, w := range b {
		if w == 0 {
			continue
		}
		n := uint32(i / vectorWords)
		v := out[n]
		v.Words[i%vectorWords] = w
		v.Some |= 1 << (i % vectorWords)
		out[n] = v
	}
	return out
}

func hashBytes(b []byte) uint32 {
	h := fnv.New64a()
	h.Write(b)
	return fold(h.Sum64())
}
