package caveats

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestParseInstant(t *testing.T) {
	for s, want := range map[string]string{
		"2026-01-02T15:04:05Z":           "2026-01-02T15:04:05Z",
		"2026-01-02T15:04:05+01:00":      "2026-01-02T14:04:05Z",
		"2026-01-02T00:30:00+01:00":      "2026-01-01T23:30:00Z",
		"2026-12-31T23:30:00-01:00":      "2027-01-01T00:30:00Z",
		"2026-01-02T15:04:05.1Z":         "2026-01-02T15:04:05.1Z",
		"2026-01-02T15:04:05.123456789Z": "2026-01-02T15:04:05.123456789Z",
		"2026-01-02T15:04:05-00:00":      "2026-01-02T15:04:05Z",
		"2024-02-29T00:00:00Z":           "2024-02-29T00:00:00Z",
		"2000-02-29T00:00:00Z":           "2000-02-29T00:00:00Z",
		"0000-01-01T00:00:00Z":           "0000-01-01T00:00:00Z",
		"9999-12-31T23:59:59.999999999Z": "9999-12-31T23:59:59.999999999Z",
		"1969-12-31T23:59:59.5Z":         "1969-12-31T23:59:59.5Z",

		"":                                "",
		"2026-01-02":                      "",
		"2026-01-02t15:04:05Z":            "",
		"2026-01-02T15:04:05z":            "",
		"2026-01-02 15:04:05Z":            "",
		"2026-01-02T15:04:05":             "",
		"2026-01-02T15:04Z":               "",
		"2026-01-02T15:04:60Z":            "", // a leap second, and no clock here has one
		"2016-12-31T23:59:60Z":            "",
		"2026-01-02T24:00:00Z":            "",
		"2026-01-02T15:60:00Z":            "",
		"2026-13-02T15:04:05Z":            "",
		"2026-00-02T15:04:05Z":            "",
		"2026-01-00T15:04:05Z":            "",
		"2026-01-32T15:04:05Z":            "",
		"2026-04-31T15:04:05Z":            "",
		"2026-02-29T15:04:05Z":            "",
		"2100-02-29T15:04:05Z":            "",
		"2026-01-02T15:04:05.Z":           "",
		"2026-01-02T15:04:05,5Z":          "",
		"2026-01-02T15:04:05.1234567890Z": "",
		"2026-01-02T15:04:05.5":           "",
		"2026-01-02T15:04:05+24:00":       "",
		"2026-01-02T15:04:05+01:60":       "",
		"2026-01-02T15:04:05+0100":        "",
		"2026-01-02T15:04:05+01":          "",
		"2026-01-02T15:04:05Z ":           "",
		"2026-01-02T15:04:05ZZ":           "",
		"+026-01-02T15:04:05Z":            "",
		"2026-1-002T15:04:05Z":            "",
		"２026-01-02T15:04:05Z":            "",
		"12026-01-02T15:04:05Z":           "",
	} {
		got, ok := parseInstant([]byte(s))
		if ok != (want != "") || ok && got.time().Format(timeLayout) != want {
			t.Errorf("%q: %v, %s; want %q", s, ok, got.time().Format(timeLayout), want)
		}
	}
}

func TestInstantAgainstTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		offset := time.FixedZone("", 60*rapid.IntRange(-23*60-59, 23*60+59).Draw(t, "offset"))
		when := time.Unix(rapid.Int64Range(-62167219200+86400, 253402300799-86400).Draw(t, "sec"),
			rapid.Int64Range(0, 999_999_999).Draw(t, "nsec")).In(offset)
		layout := rapid.SampledFrom([]string{time.RFC3339, time.RFC3339Nano, "2006-01-02T15:04:05.000Z07:00"}).Draw(t, "layout")
		s := when.Format(layout)
		want, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := parseInstant([]byte(s))
		if !ok || got != instantOf(want) || got.millis() != want.UnixMilli() {
			t.Fatalf("%s: %v %v, want %v", s, got, ok, instantOf(want))
		}
		other := want.Add(time.Duration(rapid.Int64Range(-2e9, 2e9).Draw(t, "delta")))
		if got.before(instantOf(other)) != want.Before(other) {
			t.Fatalf("%v before %v", want, other)
		}
	})
}

// Every day of 800 years, so that the calendar is not left to chance.
func TestInstantEveryDay(t *testing.T) {
	for d := time.Date(1600, 1, 1, 0, 0, 0, 0, time.UTC); d.Year() < 2400; d = d.AddDate(0, 0, 1) {
		if got, ok := parseInstant([]byte(d.Format(time.RFC3339))); !ok || got.sec != d.Unix() {
			t.Fatalf("%v: %v %v", d, got, ok)
		}
	}
	for year := 1600; year < 2400; year++ {
		for month := 1; month <= 12; month++ {
			after := fmt.Sprintf("%04d-%02d-%02dT00:00:00Z", year, month, 1+daysIn(year, month))
			if _, ok := parseInstant([]byte(after)); ok {
				t.Fatalf("%s was read", after)
			}
		}
	}
}

func FuzzInstant(f *testing.F) {
	for _, s := range []string{"2026-01-02T15:04:05Z", "2026-01-02T15:04:05.5+01:30", "2024-02-29T00:00:00-00:00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := parseInstant([]byte(s))
		if !ok {
			return
		}
		want, err := time.Parse(time.RFC3339, s)
		if err != nil || got != instantOf(want) {
			t.Fatalf("%q was read as %v; time says %v %v", s, got, want, err)
		}
	})
}
