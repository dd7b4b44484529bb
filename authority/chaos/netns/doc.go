// Package netns makes small networks of Linux network namespaces for tests: hosts
// with an address of their own on one switch, between which packets can be made to
// vanish, in one direction or both.
//
// A [Lab] is a world of its own. The switch is in a namespace too, so nothing of it
// is seen or reached from outside, and labs of several processes do not meet. Begin
// with [New], add hosts with [Lab.Host], start processes on them with [Host.Start],
// and talk with these through [Host.DialContext], from another host or from
// [Lab.Switch].
//
// It takes root and iproute2. What a process that was killed has left behind is
// removed by the next New.
package netns
