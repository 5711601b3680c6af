package dns

import (
	"encoding/binary"
	"errors"

	"golang.org/x/net/dns/dnsmessage"
)

// Replies of upstreams are passed on as they came, with a few bytes changed.
// Taking them apart and packing them again would lose what the codec does not
// know, and refuse names with dots in their labels, which exist in SOA records.

var errMalformed = errors.New("malformed reply")

// layout says where things are in an upstream's reply.
type layout struct {
	rcode   int
	body    int   // first byte behind the question
	end     int   // without OPT and what follows it
	ttls    []int // offsets of the TTLs
	extra   uint16
	minTTL  uint32 // over all records
	soaTTL  uint32 // what an SOA in the authority section allows a negative answer
	hasSOA  bool
	hasType bool // a record of the asked type is among the answers
}

// scan reads a reply from front to back and refuses what a client could not
// read: cut off records, names that point forward, in circles or out of the
// message. typ is the type that was asked.
func scan(msg []byte, typ dnsmessage.Type) (layout, error) {
	l := layout{minTTL: ^uint32(0)}
	if len(msg) < headerLen || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return l, errMalformed
	}
	l.rcode = int(binary.BigEndian.Uint16(msg[2:]) & rcodeMask)
	off, err := nameEnd(msg, headerLen)
	if err != nil || off+4 > len(msg) {
		return l, errMalformed
	}
	off += 4
	l.body = off
	for section := sectionAnswer; section <= sectionAdditional; section++ {
		count := binary.BigEndian.Uint16(msg[4+2*section:])
		for i := range count {
			next, isOPT, err := l.record(msg, off, section, typ)
			if err != nil {
				return l, err
			}
			if isOPT {
				// Records behind the OPT are dropped with it: additional ones are
				// a courtesy, and pointers into what is cut cannot break so.
				l.end, l.extra = off, i
				return l, nil
			}
			off = next
		}
		l.extra = count
	}
	l.end = off
	return l, nil
}

// record reads one record at off and returns where the next begins.
func (l *layout) record(msg []byte, off, section int, asked dnsmessage.Type) (next int, isOPT bool, err error) {
	h, err := nameEnd(msg, off)
	if err != nil || h+10 > len(msg) {
		return 0, false, errMalformed
	}
	typ := dnsmessage.Type(binary.BigEndian.Uint16(msg[h:]))
	ttl := binary.BigEndian.Uint32(msg[h+4:])
	data := h + 10
	next = data + int(binary.BigEndian.Uint16(msg[h+8:]))
	if next > len(msg) {
		return 0, false, errMalformed
	}
	if typ == dnsmessage.TypeOPT {
		if section != sectionAdditional {
			return 0, false, errMalformed
		}
		l.rcode |= int(ttl>>24) << 4
		return next, true, nil
	}
	if err := checkData(msg, typ, data, next); err != nil {
		return 0, false, err
	}
	if ttl > 1<<31-1 {
		ttl = 0 // RFC 2181, section 8
	}
	l.ttls = append(l.ttls, h+4)
	l.minTTL = min(l.minTTL, ttl)
	if section == sectionAnswer && (typ == asked || asked == dnsmessage.TypeALL) {
		l.hasType = true
	}
	if section == sectionAuthority && typ == dnsmessage.TypeSOA {
		l.hasSOA = true
		l.soaTTL = min(ttl, binary.BigEndian.Uint32(msg[next-4:]))
	}
	return next, false, nil
}

// checkData checks the names that may be compressed inside a record's data, and
// sizes that clients rely on.
func checkData(msg []byte, typ dnsmessage.Type, data, end int) error {
	names, tail := 0, 0
	switch typ {
	case dnsmessage.TypeA:
		tail = 4
	case dnsmessage.TypeAAAA:
		tail = 16
	case dnsmessage.TypeNS, dnsmessage.TypeCNAME, dnsmessage.TypePTR:
		names = 1
	case dnsmessage.TypeSOA:
		names, tail = 2, 20
	case dnsmessage.TypeMX:
		data, names = data+2, 1
	case dnsmessage.TypeSRV:
		data, names = data+6, 1
	default:
		return nil
	}
	for range names {
		next, err := nameEnd(msg[:end], data)
		if err != nil {
			return err
		}
		data = next
	}
	if data+tail != end {
		return errMalformed
	}
	return nil
}

// nameEnd checks the name at off and returns where it ends. Pointers have to
// lead backwards, which also ends every chain of them.
func nameEnd(msg []byte, off int) (int, error) {
	end, length := 0, 0
	for {
		if off < headerLen || off >= len(msg) {
			return 0, errMalformed
		}
		c := int(msg[off])
		switch {
		case c == 0:
			if end == 0 {
				end = off + 1
			}
			return end, nil
		case c < 64:
			if length += c + 1; length > 254 {
				return 0, errMalformed
			}
			off += c + 1
		case c >= 0xc0 && off+1 < len(msg):
			to := c&0x3f<<8 | int(msg[off+1])
			if to >= off {
				return 0, errMalformed
			}
			if end == 0 {
				end = off + 2
			}
			off = to
		default:
			return 0, errMalformed
		}
	}
}

// sameQuestion compares a reply's question with ours, without regard to case.
func sameQuestion(msg []byte, question []byte) bool {
	if len(msg) < headerLen+len(question) || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return false
	}
	for i, b := range question {
		if lower(msg[headerLen+i]) != lower(b) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// relay turns an upstream's reply into ours: the client's ID, flags and spelling
// of the name, TTLs as they are now, our own OPT. What exceeds the limit becomes
// an empty reply with TC.
func relay(buf []byte, q *query, msg []byte, l *layout, limit, ede int, ttl func(uint32) uint32) []byte {
	r := newReply(buf, q, l.rcode, false, limit, ede)
	if !q.edns && l.rcode > 15 {
		r.flags = r.flags&^rcodeMask | rcodeServFail
	}
	r.flags |= binary.BigEndian.Uint16(msg[2:]) & flagAD
	if l.end+len(r.opt) > limit {
		r.flags |= flagTC
		return r.done()
	}
	// The question takes the same bytes in both messages, so pointers stay true.
	shift := r.start
	r.buf = append(r.buf, msg[l.body:l.end]...)
	for _, at := range l.ttls {
		field := r.buf[shift+at:]
		binary.BigEndian.PutUint32(field, ttl(binary.BigEndian.Uint32(field)))
	}
	r.counts[sectionAnswer] = binary.BigEndian.Uint16(msg[6:])
	r.counts[sectionAuthority] = binary.BigEndian.Uint16(msg[8:])
	r.counts[sectionAdditional] = l.extra
	return r.done()
}
