package overlay

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Token is what a host needs to join a cluster whose etcd is our own: where to ask, the fingerprint of the CA that the
// answer must be signed by, and a secret that ends.
type Token struct {
	// Addrs of hosts that let others join.
	Addrs []netip.AddrPort `json:"a"`
	// CA is the SHA-256 of the CA's certificate, in hex.
	CA     string `json:"c"`
	ID     string `json:"i"`
	Secret string `json:"s"`
}

// tokenPrefix names what it is, and its version.
const tokenPrefix = "bulkhead1."

// DefaultTokenTime is how long a token is good for.
const DefaultTokenTime = 24 * time.Hour

// maxTokenTime bounds it.
const maxTokenTime = 30 * 24 * time.Hour

func (t Token) String() string {
	return tokenPrefix + base64.RawURLEncoding.EncodeToString([]byte(encode(t)))
}

// ParseToken reads a token, as a person may have copied it.
func ParseToken(s string) (Token, error) {
	s = strings.Join(strings.Fields(s), "") // a terminal may have broken it
	rest, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok {
		return Token{}, fmt.Errorf("this is no token: one begins with %q, as `bulkhead cluster token` prints it", tokenPrefix)
	}
	if len(rest) > 4096 {
		return Token{}, errors.New("this is no token: it is too long")
	}
	b, err := base64.RawURLEncoding.DecodeString(rest)
	var t Token
	if err == nil {
		err = json.Unmarshal(b, &t)
	}
	if err == nil {
		err = t.check()
	}
	if err != nil {
		return Token{}, fmt.Errorf("the token is damaged (%w): copy all of what `bulkhead cluster token` prints", err)
	}
	return t, nil
}

func (t *Token) check() error {
	ca, err := hex.DecodeString(t.CA)
	switch {
	case err != nil || len(ca) != sha256.Size:
		return errors.New("no fingerprint of a CA in it")
	case len(t.Addrs) == 0 || len(t.Addrs) > 32:
		return fmt.Errorf("%d addresses in it", len(t.Addrs))
	case !isHex(t.ID, 16) || !isHex(t.Secret, 32):
		return errors.New("no secret in it")
	}
	for _, a := range t.Addrs {
		if !a.IsValid() || a.Port() == 0 || a.Addr().IsMulticast() || a.Addr().IsUnspecified() {
			return fmt.Errorf("the address %s in it", a)
		}
	}
	return nil
}

func isHex(s string, n int) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == n/2
}

// tokenRecord is what etcd keeps of a token, under a lease that ends with it: not the secret.
type tokenRecord struct {
	Hash    string    `json:"hash"`
	Expires time.Time `json:"expires"`
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

func hashOf(secret string) string {
	sum := sha256.Sum256([]byte("bulkhead join " + secret))
	return hex.EncodeToString(sum[:])
}

// newToken makes a token that is good for a time.
func newToken(ctx context.Context, cli *clientv3.Client, prefix, ca string, addrs []netip.AddrPort, valid time.Duration) (Token, error) {
	if valid == 0 {
		valid = DefaultTokenTime
	}
	if valid < time.Minute || valid > maxTokenTime {
		return Token{}, fmt.Errorf("a token cannot be valid for %s: choose a time from a minute to %s", valid, maxTokenTime)
	}
	t := Token{Addrs: addrs, CA: ca, ID: randomHex(8), Secret: randomHex(16)}
	lease, err := cli.Grant(ctx, int64(valid/time.Second))
	if err != nil {
		return Token{}, fmt.Errorf("keep the token: %w", Explain(err))
	}
	rec := tokenRecord{Hash: hashOf(t.Secret), Expires: time.Now().Add(valid).UTC().Truncate(time.Second)}
	if _, err := cli.Put(ctx, (keys{prefix}).token(t.ID), encode(rec), clientv3.WithLease(lease.ID)); err != nil {
		return Token{}, fmt.Errorf("keep the token: %w", Explain(err))
	}
	return t, nil
}

// errToken says no more about a token than that it is not good.
var errToken = errors.New("the token is unknown, or its time is over: make a new one with `bulkhead cluster token` on a host of the cluster")

// checkToken looks a token up.
func checkToken(ctx context.Context, cli *clientv3.Client, prefix, id, secret string) error {
	if !isHex(id, 16) || !isHex(secret, 32) {
		return errToken
	}
	res, err := cli.Get(ctx, (keys{prefix}).token(id))
	if err != nil {
		return fmt.Errorf("look the token up: %w", Explain(err))
	}
	if len(res.Kvs) == 0 {
		return errToken
	}
	rec, err := decode[tokenRecord](kindToken, res.Kvs[0].Value)
	if err != nil || time.Now().After(rec.Expires) || subtle.ConstantTimeCompare([]byte(rec.Hash), []byte(hashOf(secret))) != 1 {
		return errToken
	}
	return nil
}
