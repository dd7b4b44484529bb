package main

import "golang.org/x/sys/unix"

// clockKept reports whether something keeps the system clock in time, as the
// kernel knows it (adjtimex(2)).
func clockKept() (bool, error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, err
}
