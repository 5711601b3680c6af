package hcn

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strconv"
	"unicode/utf8"
)

// Settings are decoded again by everybody who needs to know them: they are kept as they came. Those of rules, of which there are
// thousands, and of sets, which are long, are nearly always the plainest JSON that there is: an object of the schema's own names, with
// texts without escapes and whole numbers in it. Such are read here, without a look at each byte by a state machine. Whatever is not
// plain is left to the decoder, which also knows what is wrong with it.

// plainObject reads the object that begins at i and calls fn with its members. It gives the place behind it, and tells whether it is
// plain: valid, and of texts without escapes, whole numbers that are not negative, true, false and, while depth is above 1, plain
// objects of such.
func plainObject(b []byte, i, depth int, fn func(name, value []byte) bool) (end int, plain bool) {
	if i >= len(b) || b[i] != '{' {
		return i, false
	}
	if i = skipBlanks(b, i+1); i < len(b) && b[i] == '}' {
		return i + 1, true
	}
	for {
		after, ok := plainText(b, i)
		if !ok {
			return i, false
		}
		name := b[i+1 : after-1]
		if i = skipBlanks(b, after); i >= len(b) || b[i] != ':' {
			return i, false
		}
		begin := skipBlanks(b, i+1)
		after, ok = plainValue(b, begin, depth)
		if !ok || fn != nil && !fn(name, b[begin:after]) {
			return i, false
		}
		if i = skipBlanks(b, after); i >= len(b) {
			return i, false
		}
		switch b[i] {
		case '}':
			return i + 1, true
		case ',':
			i = skipBlanks(b, i+1)
		default:
			return i, false
		}
	}
}

// plainText reads a text without escapes and gives the place behind it.
func plainText(b []byte, i int) (end int, plain bool) {
	if i >= len(b) || b[i] != '"' {
		return i, false
	}
	n := bytes.IndexByte(b[i+1:], '"')
	if n < 0 {
		return i, false
	}
	text := b[i+1 : i+1+n]
	ascii := true
	for _, c := range text {
		if c < ' ' || c == '\\' {
			return i, false
		}
		ascii = ascii && c < utf8.RuneSelf
	}
	return i + n + 2, ascii || utf8.Valid(text)
}

func plainValue(b []byte, i, depth int) (end int, plain bool) {
	if i >= len(b) {
		return i, false
	}
	switch c := b[i]; {
	case c == '"':
		return plainText(b, i)
	case c == '{' && depth > 1:
		return plainObject(b, i, depth-1, nil)
	case c == '0':
		i++
	case c >= '1' && c <= '9':
		for i++; i < len(b) && b[i] >= '0' && b[i] <= '9'; i++ {
		}
	case bytes.HasPrefix(b[i:], []byte("true")):
		i += len("true")
	case bytes.HasPrefix(b[i:], []byte("false")):
		i += len("false")
	default:
		return i, false
	}
	// A number may go on with a fraction, and anything with what is not JSON.
	return i, i < len(b) && (b[i] == ',' || b[i] == '}' || b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r')
}

// decodePlain reads settings into v, which is of their shape and empty. When it says no, v is not to be used.
func decodePlain(b []byte, v reflect.Value, fields map[string]settingsField) bool {
	end, plain := plainObject(b, skipBlanks(b, 0), 1, func(name, value []byte) bool {
		f, ok := fields[string(name)]
		return ok && f.direct && setPlain(v.FieldByIndex(f.index), value)
	})
	return plain && skipBlanks(b, end) == len(b)
}

func setPlain(at reflect.Value, value []byte) bool {
	if u, ok := reflect.TypeAssert[json.Unmarshaler](at.Addr()); ok {
		return u.UnmarshalJSON(value) == nil
	}
	switch kind := at.Kind(); {
	case kind == reflect.String && value[0] == '"':
		at.SetString(string(value[1 : len(value)-1]))
		return true
	case at.CanUint():
		n, err := strconv.ParseUint(string(value), 10, 64)
		if err != nil || at.OverflowUint(n) {
			return false
		}
		at.SetUint(n)
		return true
	case kind == reflect.Bool && (value[0] == 't' || value[0] == 'f'):
		at.SetBool(value[0] == 't')
		return true
	}
	return false
}

// plainPolicy reads a policy that is written as the schema has it, with plain settings.
func plainPolicy(b []byte) (typ string, settings json.RawMessage, plain bool) {
	end, plain := plainObject(b, skipBlanks(b, 0), 2, func(name, value []byte) bool {
		switch {
		case string(name) == "Type" && value[0] == '"':
			typ = string(value[1 : len(value)-1])
			return true
		case string(name) == "Settings" && value[0] == '{':
			settings = bytes.Clone(value)
			return true
		}
		return false
	})
	return typ, settings, plain && settings != nil && skipBlanks(b, end) == len(b)
}
