// Follows a box's document and prints what it sees, one JSON object a line; on stdin [map, key, value] is written
// into its own copy. Usage: node client.js ws://HOST:PORT/v1/fleet, with an API key in SHOAL_API_KEY if there is one.
import { createInterface } from 'node:readline'
import WebSocket from 'ws'
import { WebsocketProvider } from 'y-websocket'
import * as Y from 'yjs'

const maps = ['admins', 'conflicts', 'facts', 'firewall', 'fleet', 'members', 'settings']
const key = process.env.SHOAL_API_KEY

class Socket extends WebSocket {
  constructor (url, protocols) {
    super(url, protocols, key ? { headers: { Authorization: `Bearer ${key}` } } : {})
  }
}

const doc = new Y.Doc()
const say = (value) => process.stdout.write(JSON.stringify(value) + '\n')
const provider = new WebsocketProvider(process.argv[2], 'document', doc, { WebSocketPolyfill: Socket, disableBc: true })
provider.on('sync', (synced) => say({ synced }))
provider.on('closed', ({ code, reason }) => say({ closed: code, reason }))
doc.on('update', () => say({ document: Object.fromEntries(maps.map((name) => [name, doc.getMap(name).toJSON()])) }))

createInterface({ input: process.stdin })
  .on('line', (line) => {
    const [map, entry, value] = JSON.parse(line)
    doc.getMap(map).set(entry, value)
  })
  .on('close', () => process.exit(0))
