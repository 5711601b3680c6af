// Package overlay is the control plane of networks that span hosts. There is no
// controller: every host keeps a lease in etcd, publishes what it has under that
// lease, and watches what the others publish.
//
// An [Agent] is a host's part of it. It has two sides:
//
//   - What this host has goes in with [Agent.Publish]: a whole value, as often as it
//     changes. The agent compares it with what etcd shows of it, writes the difference
//     in batches, and does so again when a lease ended, a key was removed by somebody
//     or etcd came back.
//   - What the others have comes out of [Agent.Take]: networks, hosts and endpoints
//     that changed since the last call, each as it is now. Between two calls changes of
//     one object melt into one, so a reader may be as slow as it likes, and what is held
//     is bounded by what exists.
//
// Addresses are safe without etcd. A host owns blocks of a network's prefix
// ([Agent.LeaseBlock]), and only what lies in them may be an endpoint's. A block has no
// time limit: it stays with its host until the host gives it back, leaves, or is removed
// by an operator ([Agent.Forget]). So a host that was cut off for a week goes on making
// containers from its blocks, and meets no conflict when it is back.
//
// Everything read from etcd was written by somebody else: keys and values have bounds,
// are decoded and checked, and what does not pass is left out and counted
// ([Status.Problems]). An endpoint counts only where its addresses lie in blocks of the
// host that publishes it.
//
// The layout of the keys is in docs/overlay-etcd.md.
package overlay
