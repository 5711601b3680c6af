package nat

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// kernel reads and writes nftables by netlink in one network namespace.
type kernel struct {
	netns int // descriptor; 0 is the caller's own namespace
	// in runs a function in it.
	in func(func() error) error
	// batch writes elements, and writer what else is written without nft. Writes take turns.
	batch  batcher
	writer *nftables.Conn
}

var table = &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}

// listing is what the kernel says about our table.
type listing struct {
	exists bool
	// static is a checksum over the table, its chains, rules, sets and counters; seal the comment kept in the table.
	static, seal string
	elements     elements
}

// errMoved says that somebody committed while we were listing.
var errMoved = errors.New("the ruleset changed while it was listed")

// list reads the table. A listing is several dumps, so the generation is read before and after.
func (k *kernel) list() (*listing, error) {
	var err error
	for range 10 {
		var l *listing
		if l, err = k.listOnce(); err == nil {
			return l, nil
		}
		if !errors.Is(err, errMoved) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	return nil, fmt.Errorf("list table inet %s: %w", TableName, err)
}

func (k *kernel) listOnce() (*listing, error) {
	c, err := k.dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	before, err := generation(c)
	if err != nil {
		return nil, err
	}
	l := &listing{elements: elements{}}
	if l.exists, l.static, err = checksum(c, TableName); err != nil {
		return nil, err
	}
	if l.exists {
		for _, s := range sets() {
			if err := l.readSet(c, TableName, s.name); err != nil {
				return nil, err
			}
		}
	}
	after, err := generation(c)
	if err != nil {
		return nil, err
	}
	if before != after {
		return nil, errMoved
	}
	return l, nil
}

func (k *kernel) dial() (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: k.netns})
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	return c, nil
}

func nftMessage(kind int, flags netlink.HeaderFlags, attrs []netlink.Attribute) (netlink.Message, error) {
	data, err := netlink.MarshalAttributes(attrs)
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags},
		Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, data...),
	}, err
}

func query(c *netlink.Conn, kind int, flags netlink.HeaderFlags, attrs ...netlink.Attribute) ([]netlink.Message, error) {
	m, err := nftMessage(kind, flags, attrs)
	if err != nil {
		return nil, err
	}
	return c.Execute(m)
}

func generation(c *netlink.Conn) (uint32, error) {
	msgs, err := query(c, unix.NFT_MSG_GETGEN, 0)
	if err != nil {
		return 0, fmt.Errorf("read ruleset generation: %w", err)
	}
	for _, m := range msgs {
		g, err := parseGeneration(m.Data)
		return g.id, err
	}
	return 0, errors.New("read ruleset generation: no answer")
}

type genInfo struct {
	id, pid uint32
	name    string
}

func parseGeneration(data []byte) (genInfo, error) {
	var g genInfo
	ad, err := attributes(data)
	if err != nil {
		return g, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_GEN_ID:
			g.id = ad.Uint32()
		case unix.NFTA_GEN_PROC_PID:
			g.pid = ad.Uint32()
		case unix.NFTA_GEN_PROC_NAME:
			g.name = ad.String()
		}
	}
	return g, ad.Err()
}

// attributes decodes what follows the netfilter header.
func attributes(data []byte) (*netlink.AttributeDecoder, error) {
	if len(data) < 4 {
		return nil, fmt.Errorf("netfilter message of %d bytes", len(data))
	}
	ad, err := netlink.NewAttributeDecoder(data[4:])
	if err == nil {
		ad.ByteOrder = binary.BigEndian
	}
	return ad, err
}

// Attributes of include/uapi/linux/netfilter/nf_tables.h that x/sys lacks.
const (
	nftaTableUserdata  = 6
	nftaChainFlags     = 10
	nftaFlowtableTable = 1
	nftaFlowtableName  = 2
	nftaSetElemKeyEnd  = 10
)

// dump is a kind of object to list, and the attributes of it that the kernel does not change by itself: handles, use
// counts and counter values are left out, so the rest is the same bytes for as long as nobody changes the table.
type dump struct {
	kind   int
	table  uint16 // the attribute that names the table
	stable []uint16
}

var dumps = []dump{
	{unix.NFT_MSG_GETTABLE, unix.NFTA_TABLE_NAME, []uint16{unix.NFTA_TABLE_NAME, unix.NFTA_TABLE_FLAGS, nftaTableUserdata}},
	{unix.NFT_MSG_GETCHAIN, unix.NFTA_CHAIN_TABLE, []uint16{unix.NFTA_CHAIN_NAME, unix.NFTA_CHAIN_HOOK, unix.NFTA_CHAIN_POLICY, unix.NFTA_CHAIN_TYPE, nftaChainFlags}},
	{unix.NFT_MSG_GETRULE, unix.NFTA_RULE_TABLE, []uint16{unix.NFTA_RULE_CHAIN, unix.NFTA_RULE_EXPRESSIONS}},
	{unix.NFT_MSG_GETSET, unix.NFTA_SET_TABLE, []uint16{unix.NFTA_SET_NAME, unix.NFTA_SET_FLAGS, unix.NFTA_SET_KEY_TYPE, unix.NFTA_SET_KEY_LEN, unix.NFTA_SET_DATA_TYPE, unix.NFTA_SET_DATA_LEN, unix.NFTA_SET_TIMEOUT}},
	{unix.NFT_MSG_GETOBJ, unix.NFTA_OBJ_TABLE, []uint16{unix.NFTA_OBJ_NAME, unix.NFTA_OBJ_TYPE}},
	{unix.NFT_MSG_GETFLOWTABLE, nftaFlowtableTable, []uint16{nftaFlowtableName}},
}

// checksum tells whether the table exists and sums up all in it but the elements.
func checksum(c *netlink.Conn, table string) (bool, string, error) {
	sum := sha256.New()
	exists := false
	for _, d := range dumps {
		msgs, err := query(c, d.kind, netlink.Dump)
		if err != nil {
			if d.kind == unix.NFT_MSG_GETFLOWTABLE && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) {
				continue // a kernel without flow tables
			}
			return false, "", fmt.Errorf("dump objects of kind %d: %w", d.kind, err)
		}
		for _, m := range msgs {
			ad, err := attributes(m.Data)
			if err != nil {
				return false, "", err
			}
			ours, part := false, []byte{byte(d.kind)}
			for ad.Next() {
				t := ad.Type()
				if t == d.table && ad.String() == table && m.Data[0] == unix.NFPROTO_INET {
					ours = true
				}
				if slices.Contains(d.stable, t) {
					b := ad.Bytes()
					part = binary.BigEndian.AppendUint16(part, t)
					part = binary.BigEndian.AppendUint32(part, uint32(len(b)))
					part = append(part, b...)
				}
			}
			if err := ad.Err(); err != nil {
				return false, "", err
			}
			if ours {
				exists = true
				sum.Write(part)
			}
		}
	}
	return exists, hex.EncodeToString(sum.Sum(nil)[:12]), nil
}

// readSet lists the elements of one of our sets. A set that is not there has none; the checksum tells.
func (l *listing) readSet(c *netlink.Conn, table, name string) error {
	msgs, err := query(c, unix.NFT_MSG_GETSETELEM, netlink.Dump,
		netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: []byte(table + "\x00")},
		netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte(name + "\x00")})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("dump set %s: %w", name, err)
	}
	for _, m := range msgs {
		ad, err := attributes(m.Data)
		if err != nil {
			return err
		}
		for ad.Next() {
			if ad.Type() == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				ad.Nested(func(list *netlink.AttributeDecoder) error {
					for list.Next() {
						list.Nested(func(e *netlink.AttributeDecoder) error { return l.readElement(name, e) })
					}
					return list.Err()
				})
			}
		}
		if err := ad.Err(); err != nil {
			return fmt.Errorf("decode set %s: %w", name, err)
		}
	}
	return nil
}

func (l *listing) readElement(set string, ad *netlink.AttributeDecoder) error {
	k, e := elemKey{set: set}, elem{}
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_SET_ELEM_KEY:
			ad.Nested(func(d *netlink.AttributeDecoder) error { k.key = dataValue(d); return nil })
		case nftaSetElemKeyEnd:
			ad.Nested(func(d *netlink.AttributeDecoder) error { k.last = dataValue(d); return nil })
		case unix.NFTA_SET_ELEM_DATA:
			ad.Nested(func(d *netlink.AttributeDecoder) error { e.val = dataValue(d); return nil })
		case unix.NFTA_SET_ELEM_FLAGS:
			k.end = ad.Uint32()&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_USERDATA:
			if set == setSeal {
				l.seal = udataString(ad.Bytes())
			}
		}
	}
	// rbtree sets list a closing element at the start of the address space, which is not ours to compare.
	if set != setSeal && (!k.end || !allZero(k.key)) {
		l.elements[k] = e
	}
	return ad.Err()
}

func allZero(s string) bool {
	for i := range len(s) {
		if s[i] != 0 {
			return false
		}
	}
	return true
}

func dataValue(d *netlink.AttributeDecoder) string {
	var v string
	for d.Next() {
		if d.Type() == unix.NFTA_DATA_VALUE {
			v = string(d.Bytes())
		}
	}
	return v
}

// udataString reads nft's comment out of the user data of an element: type, length, bytes.
func udataString(b []byte) string {
	for len(b) >= 2 && len(b) >= 2+int(b[1]) {
		if b[0] == 0 { // NFTNL_UDATA_SET_ELEM_COMMENT
			s := b[2 : 2+int(b[1])]
			if i := slices.Index(s, 0); i >= 0 {
				s = s[:i]
			}
			return string(s)
		}
		b = b[2+int(b[1]):]
	}
	return ""
}
