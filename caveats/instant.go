package caveats

import "time"

// instant is a moment as Unix seconds and nanoseconds: a time.Time that costs
// nothing to make.
type instant struct {
	sec  int64
	nsec int32
}

func instantOf(t time.Time) instant { return instant{t.Unix(), int32(t.Nanosecond())} }

func (a instant) before(b instant) bool {
	return a.sec < b.sec || a.sec == b.sec && a.nsec < b.nsec
}

// millis is the moment in Unix milliseconds, rounded down.
func (a instant) millis() int64 { return a.sec*1000 + int64(a.nsec/1_000_000) }

func (a instant) time() time.Time { return time.Unix(a.sec, int64(a.nsec)).UTC() }

// parseInstant reads the date-time of RFC 3339 section 5.6, strictly: T and Z
// in upper case, at most 9 digits of fraction, no leap second (no clock here
// has one), every field in its range.
func parseInstant(b []byte) (t instant, ok bool) {
	if len(b) < len("2006-01-02T15:04:05Z") ||
		b[4] != '-' || b[7] != '-' || b[10] != 'T' || b[13] != ':' || b[16] != ':' {
		return instant{}, false
	}
	century, year := two(b), two(b[2:])
	month, day := two(b[5:]), two(b[8:])
	hour, minute, second := two(b[11:]), two(b[14:]), two(b[17:])
	if century < 0 || year < 0 || month < 1 || month > 12 || day < 1 ||
		hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 59 {
		return instant{}, false
	}
	year += 100 * century
	if day > daysIn(year, month) {
		return instant{}, false
	}
	b = b[19:]
	if b[0] == '.' {
		digits, scale := 0, int32(100_000_000)
		for b = b[1:]; len(b) > 0 && '0' <= b[0] && b[0] <= '9'; b = b[1:] {
			if digits++; digits > 9 {
				return instant{}, false
			}
			t.nsec += int32(b[0]-'0') * scale
			scale /= 10
		}
		if digits == 0 {
			return instant{}, false
		}
	}
	offset, ok := parseOffset(b)
	if !ok {
		return instant{}, false
	}
	t.sec = days(year, month, day)*86400 + int64(hour*3600+minute*60+second) - offset
	return t, true
}

// parseOffset reads Z or ±hh:mm, to seconds east of UTC.
func parseOffset(b []byte) (seconds int64, ok bool) {
	if len(b) == 1 && b[0] == 'Z' {
		return 0, true
	}
	if len(b) != len("+00:00") || b[0] != '+' && b[0] != '-' || b[3] != ':' {
		return 0, false
	}
	hour, minute := two(b[1:]), two(b[4:])
	if hour < 0 || hour > 23 || minute < 0 || minute > 59 {
		return 0, false
	}
	seconds = int64(hour*3600 + minute*60)
	if b[0] == '-' {
		seconds = -seconds
	}
	return seconds, true
}

// two reads two decimal digits, -1 if they are none.
func two(b []byte) int {
	hi, lo := b[0]-'0', b[1]-'0'
	if hi > 9 || lo > 9 {
		return -1
	}
	return int(hi)*10 + int(lo)
}

func daysIn(year, month int) int {
	switch month {
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	case 4, 6, 9, 11:
		return 30
	}
	return 31
}

// days counts from 1970-01-01 in the proleptic Gregorian calendar. The year
// begins in March, so that the leap day is its last (Howard Hinnant,
// "chrono-Compatible Low-Level Date Algorithms", days_from_civil).
func days(year, month, day int) int64 {
	if month <= 2 {
		year, month = year-1, month+12
	}
	year += 400 // never negative
	return int64(365*year+year/4-year/100+year/400+(153*(month-3)+2)/5+day-1) - 719468 - 146097
}
