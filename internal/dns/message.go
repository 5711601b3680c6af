package dns

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"
)

// Types that dnsmessage has no name for.
const (
	typeDS     dnsmessage.Type = 43
	typeDNSKEY dnsmessage.Type = 48
	typeTKEY   dnsmessage.Type = 249
	typeIXFR   dnsmessage.Type = 251
)

// Response codes; the last one needs EDNS.
const (
	rcodeSuccess  = 0
	rcodeFormErr  = 1
	rcodeServFail = 2
	rcodeNXDomain = 3
	rcodeNotImp   = 4
	rcodeRefused  = 5
	rcodeBadVers  = 16
)

// Header flags, in the second 16 bits of a message.
const (
	flagQR uint16 = 1 << 15
	flagAA uint16 = 1 << 10
	flagTC uint16 = 1 << 9
	flagRD uint16 = 1 << 8
	flagRA uint16 = 1 << 7
	flagAD uint16 = 1 << 5
	flagCD uint16 = 1 << 4

	opcodeMask uint16 = 15 << 11
	rcodeMask  uint16 = 15
)

const (
	headerLen = 12
	// minUDP is what any client takes, maxUDP what crosses any path unfragmented:
	// the size that the DNS flag day of 2020 settled on.
	minUDP = 512
	maxUDP = 1232
	maxTCP = 65535
)

// Extended errors (RFC 8914) that tell a human with dig why.
const (
	edeNone          = -1
	edeStale         = 3
	edeProhibited    = 18
	edeStaleNXDomain = 19
	edeNoUpstream    = 22
)

// query is one request taken apart.
type query struct {
	id     uint16
	flags  uint16
	name   dnsmessage.Name // as asked, in the client's case
	folded string
	typ    dnsmessage.Type
	class  dnsmessage.Class
	asked  bool // there is a question to repeat

	edns, do bool
	size     int // what the client takes over UDP
}

// parseQuery reads a request. ok is false for what deserves no answer at all: a
// fragment, or a response, which answering would make a loop of. A request that
// is to be answered with an error has its code in rcode.
func parseQuery(msg []byte) (q query, rcode int, ok bool) {
	q.size = minUDP
	if len(msg) < headerLen {
		return q, 0, false
	}
	q.id = binary.BigEndian.Uint16(msg)
	q.flags = binary.BigEndian.Uint16(msg[2:])
	switch {
	case q.flags&flagQR != 0:
		return q, 0, false
	case q.flags&opcodeMask != 0:
		return q, rcodeNotImp, true
	case binary.BigEndian.Uint16(msg[4:]) != 1:
		return q, rcodeFormErr, true
	}
	var p dnsmessage.Parser
	if _, err := p.Start(msg); err != nil {
		return q, rcodeFormErr, true
	}
	question, err := p.Question()
	if err != nil || p.SkipAllQuestions() != nil {
		return q, rcodeFormErr, true
	}
	q.name, q.typ, q.class, q.asked = question.Name, question.Type, question.Class, true
	q.folded = fold(q.name.String())
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, rcodeFormErr, true
	}
	return q, q.parseOPT(&p), true
}

// parseOPT looks for EDNS among the additional records.
func (q *query) parseOPT(p *dnsmessage.Parser) int {
	rcode := rcodeSuccess
	for {
		h, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return rcode
		}
		if err != nil {
			return rcodeFormErr
		}
		if h.Type == dnsmessage.TypeOPT {
			if q.edns || h.Name.Length != 1 {
				return rcodeFormErr
			}
			q.edns = true
			q.do = h.TTL&0x8000 != 0
			q.size = min(max(int(h.Class), minUDP), maxUDP)
			if h.TTL>>16&0xff != 0 {
				rcode = rcodeBadVers
			}
		}
		if p.SkipAdditional() != nil {
			return rcodeFormErr
		}
	}
}

// reply builds a response to a query, never longer than its limit. What does
// not fit sets the TC bit, which sends the client to TCP.
type reply struct {
	buf    []byte
	start  int // of the message in buf
	limit  int
	opt    []byte
	counts [4]uint16 // question, answer, authority, additional
	flags  uint16
}

// The sections of a message, as indices of its counts.
const (
	sectionQuestion = iota
	sectionAnswer
	sectionAuthority
	sectionAdditional
)

// newReply starts a response in buf. ede is an extended error or edeNone.
func newReply(buf []byte, q *query, rcode int, aa bool, limit, ede int) reply {
	r := reply{buf: buf, start: len(buf), limit: limit}
	r.flags = flagQR | flagRA | q.flags&(opcodeMask|flagRD|flagCD) | uint16(rcode)&rcodeMask
	if aa {
		r.flags |= flagAA
	}
	if q.edns {
		r.opt = appendOPT(nil, q.do, rcode, ede)
	}
	r.buf = binary.BigEndian.AppendUint16(r.buf, q.id)
	r.buf = append(r.buf, make([]byte, headerLen-2)...)
	if q.asked {
		r.buf = appendQuestion(r.buf, q)
		r.counts[sectionQuestion] = 1
	}
	return r
}

func appendQuestion(b []byte, q *query) []byte {
	b = appendName(b, string(q.name.Data[:q.name.Length]))
	b = binary.BigEndian.AppendUint16(b, uint16(q.typ))
	return binary.BigEndian.AppendUint16(b, uint16(q.class))
}

// appendOPT writes our side of EDNS: the size we take, the DO bit repeated, the
// upper bits of the code, and an extended error.
func appendOPT(b []byte, do bool, rcode, ede int) []byte {
	var flags uint16
	if do {
		flags = 0x8000
	}
	b = append(b, 0, 0, byte(dnsmessage.TypeOPT))
	b = binary.BigEndian.AppendUint16(b, maxUDP)
	b = append(b, byte(rcode>>4), 0)
	b = binary.BigEndian.AppendUint16(b, flags)
	if ede == edeNone {
		return append(b, 0, 0)
	}
	return append(b, 0, 6, 0, 15, 0, 2, byte(ede>>8), byte(ede))
}

// record adds one record for the name asked; false means that it did not fit.
func (r *reply) record(section int, typ dnsmessage.Type, ttl uint32, data []byte) bool {
	// A name that is repeated points to the question, right behind the header.
	return r.add(section, []byte{0xc0, headerLen}, typ, ttl, data)
}

func (r *reply) add(section int, owner []byte, typ dnsmessage.Type, ttl uint32, data []byte) bool {
	size := len(owner) + 10 + len(data)
	if len(r.buf)-r.start+size+len(r.opt) > r.limit {
		r.flags |= flagTC
		return false
	}
	r.buf = append(r.buf, owner...)
	r.buf = binary.BigEndian.AppendUint16(r.buf, uint16(typ))
	r.buf = binary.BigEndian.AppendUint16(r.buf, uint16(dnsmessage.ClassINET))
	r.buf = binary.BigEndian.AppendUint32(r.buf, ttl)
	r.buf = binary.BigEndian.AppendUint16(r.buf, uint16(len(data)))
	r.buf = append(r.buf, data...)
	r.counts[section]++
	return true
}

// addr adds an A or AAAA record.
func (r *reply) addr(a netip.Addr, ttl uint32) bool {
	if a.Is4() {
		v := a.As4()
		return r.record(sectionAnswer, dnsmessage.TypeA, ttl, v[:])
	}
	v := a.As16()
	return r.record(sectionAnswer, dnsmessage.TypeAAAA, ttl, v[:])
}

// soa adds the record that makes a negative answer cacheable (RFC 2308).
func (r *reply) soa(zone string, serial, ttl uint32) {
	data := appendName(make([]byte, 0, 64), gatewayName)
	data = appendName(data, "nobody.invalid")
	for _, v := range [...]uint32{serial, 3600, 600, 86400, ttl} {
		data = binary.BigEndian.AppendUint32(data, v)
	}
	r.add(sectionAuthority, appendName(make([]byte, 0, 64), zone), dnsmessage.TypeSOA, ttl, data)
}

// done completes the message and returns the buffer it was built in.
func (r *reply) done() []byte {
	if len(r.opt) > 0 {
		r.buf = append(r.buf, r.opt...)
		r.counts[sectionAdditional]++
	}
	m := r.buf[r.start:]
	binary.BigEndian.PutUint16(m[2:], r.flags)
	for i, n := range r.counts {
		binary.BigEndian.PutUint16(m[4+2*i:], n)
	}
	return r.buf
}
