// Package layout holds the repository to what ARCHITECTURE.md says of it: the
// direction of imports, what a service pulls in, and the house rules that a
// compiler does not know. It has tests only.
package layout
