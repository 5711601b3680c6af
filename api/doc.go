// Package api holds the documents that are Bulkhead's alone, served under /v1:
// containers, images, reports. The HCN documents are in package hcn.
//
// Times are RFC 3339 in UTC, sizes bytes, durations seconds unless a field says
// otherwise. Unknown fields are refused.
package api
