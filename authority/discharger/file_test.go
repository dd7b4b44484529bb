package discharger

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/writ-dev/writ/capability"
)

// FuzzFile: nothing panics, whatever is in a state file; what is read has each
// device once, and is there, as it was, when it is written with a change and read
// again.
func FuzzFile(f *testing.F) {
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	known := fileDevice{Device: capability.DeviceID{1}, AKs: []akName{{0, 11, 0}}, Holder: "jkt:x", Policy: "prod", Version: 1, Attested: now}
	seed := fileState{Devices: []fileDevice{known}, Used: []fileUsed{{"00", now}}}
	for _, s := range []fileState{{}, seed, {Devices: []fileDevice{known, known}}} {
		text, err := s.text()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"devices":[{"device":"00","aks":["zz"]}]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		before, err := parseState(content)
		if err != nil {
			return
		}
		lost := fileDevice{Device: capability.DeviceID{2}, Revoked: "stolen", RevokedAt: now}
		changed := before.with(lost)
		text, err := changed.text()
		if err != nil {
			return // a year of more than four digits
		}
		after, err := parseState(text)
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if d := after.find(lost.Device); d == nil || !d.stored().Revoked {
			t.Fatalf("%+v", d)
		}
		for i := range before.Devices {
			d := &before.Devices[i]
			if d.Device == lost.Device {
				continue
			}
			if got := after.find(d.Device); got == nil || !reflect.DeepEqual(got.stored(), d.stored()) || !reflect.DeepEqual(got.info(), d.info()) {
				t.Fatalf("%+v became %+v", d, got)
			}
		}
		if same := func(a, b fileUsed) bool { return a.Challenge == b.Challenge && a.Expires.Equal(b.Expires) }; !slices.EqualFunc(before.Used, after.Used, same) {
			t.Fatalf("%v became %v", before.Used, after.Used)
		}
	})
}
