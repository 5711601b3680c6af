// Package hcn lets Go code that was written against the Windows client of the Host Compute Network build and run on Linux: with
// the import
//
//	"github.com/Microsoft/hcsshim/hcn"
//
// changed to this one, the same names make the same documents, and the daemon answers. Types, functions and constants are named, and
// documents read, as that package's users know them; the implementation is our own. Calls go to the daemon's unix socket,
// /run/bulkhead/bulkhead.sock, or the one that the environment's BULKHEAD_HOST names as the command line does.
//
// New code may prefer packages client and hcn of this module, which have contexts, types and errors of their own.
package hcn
