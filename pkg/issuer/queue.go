package issuer

import "container/heap"

// queue is a heap whose items know their place in it, so that each one can be moved or taken out in O(log n).
type queue[T any] struct {
	items  []T
	before func(a, b T) bool
	// place is where an item keeps its place in this queue, counted from 1; 0 is outside.
	place func(T) *int
}

// top returns the first item; false if there is none.
func (q *queue[T]) top() (first T, ok bool) {
	if len(q.items) == 0 {
		return first, false
	}
	return q.items[0], true
}

// put inserts an item, or moves it to where it belongs now.
func (q *queue[T]) put(item T) {
	if at := *q.place(item); at > 0 {
		heap.Fix(q, at-1)
		return
	}
	heap.Push(q, item)
}

// remove takes an item out, if it is in.
func (q *queue[T]) remove(item T) {
	if at := *q.place(item); at > 0 {
		heap.Remove(q, at-1)
	}
}

// Len is for container/heap.
func (q *queue[T]) Len() int { return len(q.items) }

// Less is for container/heap.
func (q *queue[T]) Less(i, j int) bool { return q.before(q.items[i], q.items[j]) }

// Swap is for container/heap.
func (q *queue[T]) Swap(i, j int) {
	q.items[i], q.items[j] = q.items[j], q.items[i]
	*q.place(q.items[i]), *q.place(q.items[j]) = i+1, j+1
}

// Push is for container/heap.
func (q *queue[T]) Push(x any) {
	item := x.(T) // nothing else is pushed
	q.items = append(q.items, item)
	*q.place(item) = len(q.items)
}

// Pop is for container/heap.
func (q *queue[T]) Pop() any {
	last := len(q.items) - 1
	item := q.items[last]
	var none T
	q.items[last] = none // let it be collected
	q.items = q.items[:last]
	*q.place(item) = 0
	return item
}
