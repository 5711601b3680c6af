package lease

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
)

// answer reads a message that is for this client and its question, and of one of the kinds; else nil.
func (m *v6) answer(p packet, kinds ...dhcpv6.MessageType) *dhcpv6.Message {
	if len(p.payload) < 4 || !bytes.Equal(p.payload[1:4], m.xid[:]) {
		return nil
	}
	d, err := parse6(p.payload)
	if err != nil || !slices.Contains(kinds, d.MessageType) || serverID(d) == "" {
		return nil
	}
	id := d.Options.ClientID()
	if id == nil || !bytes.Equal(id.ToBytes(), m.s.id.duid()) {
		return nil
	}
	return d
}

func (m *v6) check(d *dhcpv6.Message, p packet) (*Lease, error) {
	l, err := lease6(d, m.s.id.iaid, time.Now())
	if err != nil {
		return nil, err
	}
	if err := m.admit(l.Addrs[0].Prefix.Addr()); err != nil {
		return nil, err
	}
	l.Server, l.ServerMAC = p.src, p.mac
	return l, nil
}

// maxDUID is the most that an identifier may have (RFC 8415, section 11.1), with its type.
const maxDUID = 130

// serverID is the server's DUID in hex, "" if there is none of a lawful length.
func serverID(d *dhcpv6.Message) string {
	id := d.Options.ServerID()
	if id == nil {
		return ""
	}
	raw := id.ToBytes()
	if len(raw) < 3 || len(raw) > maxDUID {
		return ""
	}
	return hex.EncodeToString(raw)
}

// What is read of an answer, by where it is: in the message, in an IA_NA, in an address.
var (
	inMessage = []dhcpv6.OptionCode{
		dhcpv6.OptionClientID, dhcpv6.OptionServerID, dhcpv6.OptionIANA, dhcpv6.OptionPreference, dhcpv6.OptionStatusCode,
		dhcpv6.OptionRapidCommit, dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionInformationRefreshTime,
	}
	inIANA    = []dhcpv6.OptionCode{dhcpv6.OptionIAAddr, dhcpv6.OptionStatusCode}
	inAddress = []dhcpv6.OptionCode{dhcpv6.OptionStatusCode}
)

// parse6 reads a message. The library reads every option at once, at any depth and those of names slowly, and so that
// strangers cannot make it work it is given only what is of use. The domain search list stays as it was sent.
func parse6(b []byte) (*dhcpv6.Message, error) {
	if len(b) < 4 {
		return nil, errors.New("no DHCPv6 message")
	}
	var search []byte
	d, err := dhcpv6.MessageFromBytes(append(slices.Clone(b[:4]), only(b[4:], inMessage, &search)...))
	if err == nil && search != nil {
		d.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionDomainSearchList, OptionData: search})
	}
	return d, err
}

// maxOptions6 is how many options are looked at in one place.
const maxOptions6 = 64

// only copies the options of some kinds, and of what is in them likewise.
func only(b []byte, kinds []dhcpv6.OptionCode, search *[]byte) (out []byte) {
	for n := 0; len(b) >= 4 && n < maxOptions6; n++ {
		code, size := dhcpv6.OptionCode(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))
		if size > len(b)-4 {
			return out
		}
		body := b[4 : 4+size]
		b = b[4+size:]
		if code == dhcpv6.OptionDomainSearchList && search != nil {
			*search = slices.Clone(body)
		}
		if !slices.Contains(kinds, code) {
			continue
		}
		switch {
		case code == dhcpv6.OptionIANA && size >= 12:
			body = append(slices.Clone(body[:12]), only(body[12:], inIANA, nil)...)
		case code == dhcpv6.OptionIAAddr && size >= 24:
			body = append(slices.Clone(body[:24]), only(body[24:], inAddress, nil)...)
		}
		out = binary.BigEndian.AppendUint16(out, uint16(code))
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(body))), body...)
	}
	return out
}

// lease6 makes a lease of an ADVERTISE or REPLY.
func lease6(d *dhcpv6.Message, iaid [4]byte, now time.Time) (*Lease, error) {
	if err := refused(d.Options.Status()); err != nil {
		return nil, err
	}
	var ia *dhcpv6.OptIANA
	for _, o := range d.Options.IANA() {
		if o.IaId == iaid {
			ia = o
			break
		}
	}
	if ia == nil {
		return nil, errors.New("it has no addresses for this client")
	}
	if err := refused(ia.Options.Status()); err != nil {
		return nil, err
	}
	l := &Lease{ServerID: serverID(d), Got: now}
	err := errors.New("it has no address")
	for _, o := range ia.Options.Addresses() {
		if err = l.address6(o, ia); err == nil {
			l.extras6(d)
			return l, nil
		}
	}
	return nil, err
}

// address6 takes an address, with the times of what it is in.
func (l *Lease) address6(o *dhcpv6.OptIAAddress, ia *dhcpv6.OptIANA) error {
	a := addr6(o.IPv6Addr)
	switch {
	case !usable6(a):
		return fmt.Errorf("address %s is none for a host", addrText(a))
	case o.PreferredLifetime > o.ValidLifetime:
		return fmt.Errorf("address %s is preferred for longer than it is valid", a)
	case o.ValidLifetime < leastLease:
		return fmt.Errorf("address %s is valid for %s, less than %s", a, o.ValidLifetime, leastLease)
	}
	if err := refused(o.Options.Status()); err != nil {
		return err
	}
	addr := Address{Prefix: netip.PrefixFrom(a, 128)}
	if o.PreferredLifetime != forever*time.Second {
		addr.Preferred = l.Got.Add(o.PreferredLifetime)
	}
	if o.ValidLifetime != forever*time.Second {
		// Renewals follow the time that the address is good for new connections.
		l.schedule(o.ValidLifetime, ia.T1, ia.T2, 0.8)
		if p := o.PreferredLifetime; ia.T1 == 0 && p >= leastLease {
			l.T1, l.T2 = l.Got.Add(p/2), l.Got.Add(p*4/5)
		}
		addr.Valid = l.Expires
	}
	l.Addrs = []Address{addr}
	return nil
}

// extras6 are resolvers and domains.
func (l *Lease) extras6(d *dhcpv6.Message) {
	for _, ip := range d.Options.DNS() {
		if r := addr6(ip); usable6(r) && len(l.DNS) < maxDNS && !slices.Contains(l.DNS, r) {
			l.DNS = append(l.DNS, r)
		}
	}
	if o, ok := d.GetOneOption(dhcpv6.OptionDomainSearchList).(*dhcpv6.OptionGeneric); ok {
		l.Search = domains(labels(o.OptionData))
	}
}

// refused is the error of a status that is none of success.
func refused(o *dhcpv6.OptStatusCode) error {
	code, text := statusOf(o)
	switch code {
	case 0:
		return nil
	case 3:
		return fmt.Errorf("%w (%s)", errNoBinding, text)
	}
	return errors.New(text)
}

func statusOf(o *dhcpv6.OptStatusCode) (code uint16, text string) {
	if o == nil {
		return 0, ""
	}
	text = o.StatusCode.String()
	if s := printable(o.StatusMessage); s != "" {
		text += ": " + s
	}
	return uint16(o.StatusCode), text
}

// usable6 says whether a host can have the address on this link and beyond.
func usable6(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.IsGlobalUnicast()
}

func addr6(ip net.IP) netip.Addr {
	if len(ip) != net.IPv6len {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte(ip))
}
